"""The benchmarks: contenders compute the same thing, timing is fair, and each script runs."""

import importlib
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
CPU = torch.device("cpu")

pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="no benchmarks beside the tests")


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a module as the scripts in ``benchmarks/`` do."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.fixture
def all_contenders(module: Any) -> Iterator[Any]:
    """Every contender on the CPU by name; scans are of one step, and validation is off."""
    pytest.importorskip("numpyro", reason="NumPyro comes with the extra 'benchmark'")
    numpyro_svi = module("contenders.numpyro_svi")
    rooms = [module(f"contenders.{name}") for name in ("stock_pyro", "hand_written", "ours")]

    def build(problem: Any) -> dict[str, Any]:
        jax_device = numpyro_svi.available("cpu")
        found = [c for room in rooms for c in room.contenders(problem)]
        found += numpyro_svi.contenders(problem, jax_device, block=1)
        return {contender.name: contender for contender in found}

    # Off as in the benchmark. It also puts back what torch.compile leaves behind: its first use
    # in a process turns the validation of torch's distributions off.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the problems are small, and the cores may be busy
    with pyro.validation_enabled(False):
        yield build
    torch.set_num_threads(threads)


COMPILED = (
    "hand-written, `torch.compile` of the loss",
    "hand-written, `torch.compile` of loss and optimiser",
    "ours, compiled",
)
SLOW_TO_START = [pytest.param(name, marks=pytest.mark.slow) for name in COMPILED]

ON_MIXTURE = [
    "stock Pyro, `TraceEnum_ELBO`",
    "stock Pyro, `Trace_ELBO`",
    "stock Pyro, `JitTraceEnum_ELBO`",
    "stock Pyro, `JitTrace_ELBO`",
    "hand-written eager",
    "hand-written eager, fused Adam",
    "NumPyro, `jit`",
    "NumPyro, `scan`",
    "ours, eager",
    *SLOW_TO_START,
]

ON_VAE = [
    "stock Pyro, `Trace_ELBO`",
    "stock Pyro, `TraceMeanField_ELBO`",
    "stock Pyro, `JitTrace_ELBO`",
    "hand-written eager",
    "hand-written eager, fused Adam",
    "NumPyro, `jit`",
    "NumPyro, `scan`",
    "ours, eager",
    *SLOW_TO_START,
]


def mixture_losses(problem: Any, steps: int) -> tuple[float, float]:
    """First and last loss of ``steps`` steps in double precision, by torch's own distributions."""
    values = [v.double().requires_grad_() for v in (problem.logits, problem.locs)]
    values.append(problem.log_scales.double().requires_grad_())
    optimizer = torch.optim.Adam(values, lr=problem.lr)
    x = problem.x.double()
    losses = []
    for _ in range(steps):
        logits, locs, log_scales = values
        normal = torch.distributions.MultivariateNormal(
            locs, scale_tril=torch.diag_embed(log_scales.exp())
        )
        weights = torch.distributions.Categorical(logits=logits)
        loss = -torch.distributions.MixtureSameFamily(weights, normal).log_prob(x).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[0], losses[-1]


@pytest.mark.parametrize("name", ON_MIXTURE)
def test_every_contender_optimises_the_same_mixture(
    name: str, all_contenders: Any, module: Any
) -> None:
    problem = module("contenders.problems").mixture_problem(device=CPU)
    contenders = all_contenders(problem)
    assert set(contenders) == {*(n for n in ON_MIXTURE if isinstance(n, str)), *COMPILED}
    run = contenders[name].start()
    first, last = mixture_losses(problem, steps=30)
    assert run(1) == pytest.approx(first, rel=1e-5)
    assert run(29) == pytest.approx(last, rel=1e-5)
    assert last < first - 0.3


def small_vae(module: Any, lr: float) -> Any:
    problems = module("contenders.problems")
    return problems.vae_problem(40, (16,), 3, 32, device=CPU, num_batches=1, lr=lr)


def vae_loss(problem: Any, draws: int) -> tuple[float, float]:
    """Minus the ELBO per datum at the initial values, and its standard error, independently."""
    x = problem.batches[0].double()
    h = x
    for index, (weight, bias) in enumerate(problem.encoder):
        h = (h.tanh() if index else h) @ weight.double().T + bias.double()
    loc, raw = h.chunk(2, -1)
    posterior = torch.distributions.Normal(loc, torch.nn.functional.softplus(raw))
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(draws, *loc.shape, generator=generator, dtype=torch.float64)
    z = loc + posterior.scale * noise
    logits = z
    for index, (weight, bias) in enumerate(problem.decoder):
        logits = (logits.tanh() if index else logits) @ weight.double().T + bias.double()
    log_x = torch.distributions.Bernoulli(logits=logits).log_prob(x.expand_as(logits)).sum(-1)
    kl = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum(-1)
    losses = (kl - log_x).mean(-1)  # (draws,)
    return losses.mean().item(), losses.std().item() / math.sqrt(draws)


@pytest.mark.parametrize("name", ON_VAE)
def test_every_contender_starts_from_the_same_vae_loss(
    name: str, all_contenders: Any, module: Any
) -> None:
    problem = small_vae(module, lr=1e-12)  # not 0: capturable Adam divides by it
    contenders = all_contenders(problem)
    assert set(contenders) == {*(n for n in ON_VAE if isinstance(n, str)), *COMPILED}
    torch.manual_seed(0)
    run = contenders[name].start()
    losses = [run(1) for _ in range(100)]
    truth, truth_error = vae_loss(problem, draws=4000)
    error = statistics.stdev(losses) / math.sqrt(len(losses))
    # Ours bounds the posterior's scale from below by 1e-4, which moves the loss by less than 1e-3.
    assert abs(statistics.mean(losses) - truth) < 4 * math.hypot(error, truth_error) + 1e-3


@pytest.mark.parametrize(
    "name", ["stock Pyro, `TraceMeanField_ELBO`", "hand-written eager, fused Adam", "ours, eager"]
)
def test_contenders_in_torch_take_the_same_steps_with_the_same_draws(
    name: str, all_contenders: Any, module: Any
) -> None:
    contenders = all_contenders(small_vae(module, lr=1e-2))
    losses = []
    for contender in ("hand-written eager", name):
        run = contenders[contender].start()
        torch.manual_seed(3)
        losses.append([run(10) for _ in range(3)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_rounds_are_interleaved_and_ratios_are_within_a_round(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    timing = module("harness.timing")
    clock, calls = [0.0], []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(timing.gc, "collect", lambda: 0)

    def contender(name: str, seconds: float, block: int = 1) -> Any:
        def start() -> Any:
            def run(steps: int) -> float:
                assert steps % block == 0
                calls.append((name, steps))
                slow = 10.0 if len(calls) > 12 else 1.0  # the machine gets slow for everyone
                clock[0] += seconds * steps * slow
                return 0.5

            return run

        return timing.Contender(name, start, block)

    a, b = timing.race(
        [contender("a", 0.001), contender("b", 0.002, block=100)],
        rounds=4,
        chunk_seconds=0.5,
        say=lambda line: None,
    )
    timed = calls[-8:]
    assert timed == [("a", 500), ("b", 200)] * 4  # b: 250 steps would do, in blocks of 100
    assert timing.ratios(b, a) == pytest.approx({"min": 2, "q1": 2, "median": 2, "q3": 2})
    assert a.summary()["min"] == pytest.approx(0.001)
    assert a.summary()["q3"] == pytest.approx(0.01)


def test_spread_is_the_quartiles(module: Any) -> None:
    spread = module("harness.timing").spread
    assert spread([3.0, 1.0, 2.0, 5.0, 4.0]) == {"min": 1, "q1": 2, "median": 3, "q3": 4}
    assert spread([2.0]) == {"min": 2, "q1": 2, "median": 2, "q3": 2}


def test_the_readme_is_changed_between_its_markers_only(module: Any) -> None:
    replace = module("harness.report").replace_between
    text = "above\n<!-- t -->\nold\n<!-- /t -->\nbelow\n"
    once = replace(text, "t", "new")
    assert once == "above\n<!-- t -->\nnew\n<!-- /t -->\nbelow\n"
    assert replace(once, "t", "new") == once
    with pytest.raises(ValueError, match="needs the lines '<!-- t -->' and '<!-- /t -->'"):
        replace("nothing", "t", "new")


def script(name: str, *options: object) -> str:
    """Run a benchmark as a person would; returns what it prints."""
    command = [sys.executable, str(BENCHMARKS / name), *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_step_time_runs_for_a_few_steps(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("# Title\n<!-- step_time -->\n<!-- /step_time -->\n")
    options = ["--device", "cpu", "--rounds", 2, "--chunk-seconds", 0, "--out", tmp_path]
    options += ["--pairs", "vae-small", "vae-large", "mixture"]
    printed = script("step_time.py", *options, "--readme", readme, "--write-readme")
    result = json.loads((tmp_path / "step_time-cpu.json").read_text())
    assert set(result["pairs"]) == {"vae-small", "vae-large", "mixture"}
    for pair in result["pairs"].values():
        assert pair["title"] in printed
        rows = {row["name"]: row for row in pair["contenders"]}
        assert {"ours, eager", "ours, compiled", "hand-written eager", pair["stock"]} <= set(rows)
        for row in rows.values():
            assert math.isfinite(row["last_loss"])
            assert len(row["rounds_seconds_per_step"]) == 2
        assert rows["ours, compiled"]["time_over_ours_compiled"]["median"] == 1
        assert rows[pair["stock"]]["stock_over_time"]["median"] == 1
    table = readme.read_text()
    assert "| VAE 784-200-50, batch 20 |" in table
    assert "| ours, compiled | **1** (" in table
    assert "2 interleaved rounds" in table


def write_images(folder: Path) -> None:
    generator = np.random.default_rng(0)
    for name, size in (("train", 300), ("valid", 50)):
        pixels = (generator.random((size, 784)) < 0.2).astype(np.uint8)
        np.savez(folder / f"{name}.npz", x=pixels)


@pytest.mark.slow
def test_binarized_mnist_runs_for_a_few_steps(tmp_path: Path) -> None:
    write_images(tmp_path)
    options = ("--epochs", 2, "--num-samples", 20, "--repeats", 1, "--device", "cpu")
    script("binarized_mnist.py", "--data", tmp_path, "--out", tmp_path, *options)
    result = json.loads((tmp_path / "binarized_mnist-cpu.json").read_text())
    ours, by_hand = (result["runs"][name][0] for name in ("ours", "hand-written"))
    # Both have learned the pixels' mean at least: its entropy is 392 nats.
    for outcome in (ours, by_hand):
        assert -420 < outcome["bound"] < -350
        assert outcome["training_seconds"] > 0
    check = result["cross_check"]
    assert abs(check["difference"]) < 4 * check["standard_error"] + 1e-2


def test_the_bound_by_hand_is_log_p_by_quadrature(module: Any) -> None:
    """One latent dimension: against quadrature of p(x)."""
    script_module = module("binarized_mnist")
    problems, hand = module("contenders.problems"), module("contenders.hand_written")
    problem = problems.vae_problem(5, (4,), 1, 8, device=CPU, num_batches=1)
    loss = hand.VAELoss(problems.network(problem.encoder), problems.network(problem.decoder))
    with torch.no_grad():  # a guide wider than the posterior, so that the weights are bounded
        loss.encoder[-1].weight.zero_()
        loss.encoder[-1].bias.copy_(torch.tensor([0.3, 1.0]))
    x = problem.batches[0]
    bound = script_module.bound_by_hand(loss, x, num_samples=20_000, rows=40_000)
    grid = torch.linspace(-9, 9, 4001)[:, None]
    with torch.no_grad():
        logits = loss.decoder(grid)[:, None]  # (grid, 1, pixels)
    log_joint = torch.distributions.Bernoulli(logits=logits).log_prob(x).sum(-1)
    log_joint = log_joint + torch.distributions.Normal(0.0, 1.0).log_prob(grid)
    exact = log_joint.logsumexp(0) + math.log(18 / 4000)
    torch.testing.assert_close(bound, exact, atol=0.02, rtol=0)

"""Contenders of the pairs with structure in their codes: each starts from the same loss."""

import importlib
import json
import math
import statistics
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from torch.nn.functional import softplus

from tests.test_benchmarks import BENCHMARKS, CPU, script

DRAWS = 4000
SMALL = {"device": CPU, "num_batches": 1, "lr": 1e-12}  # not 0: capturable Adam divides by it

pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="no benchmarks beside the tests")


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Import as the scripts do; validation is off, as there, and put back afterwards."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the problems are small, and the cores may be busy
    with pyro.validation_enabled(False):
        yield importlib.import_module
    torch.set_num_threads(threads)


def small(kind: str, module: Callable[[str], Any]) -> tuple[Any, Any]:
    """A small problem, and its contenders by name."""
    name = kind.partition(" ")[0]
    room = module(f"contenders.{'clustered' if name in ('gmvae', 'vade') else name}")
    if kind == "sticks":
        problem = room.sticks_problem(40, (16,), truncation=5, batch_size=32, **SMALL)
    elif name == "semi_supervised":
        code = room.StickCode() if kind.endswith("sticks") else room.NormalCode()
        problem = room.semi_supervised_problem(40, (16,), 3, 4, 32, code=code, **SMALL)
    else:
        problem = room.clustered_problem(kind == "gmvae", 40, (16,), 3, 4, 32, **SMALL)
    return problem, {found.name: found for found in room.contenders(problem, CPU)}


def run(values: Any, x: torch.Tensor, activation: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A perceptron in double precision."""
    for index, (weight, bias) in enumerate(values):
        x = (activation(x) if index else x) @ weight.double().T + bias.double()
    return x


def log_x(problem: Any, codes: torch.Tensor, activation: Any) -> torch.Tensor:
    likelihood = torch.distributions.Bernoulli(logits=run(problem.decoder, codes, activation))
    x = problem.batches[0].double()
    return likelihood.log_prob(x.expand(len(codes), *x.shape)).sum(-1)  # (draws, batch)


def sticks_losses(problem: Any) -> torch.Tensor:
    """Minus the ELBO per datum of each draw, by torch's own distributions."""
    pieces, kl = stick_draws(run(problem.encoder, problem.batches[0].double(), torch.relu))
    return kl - log_x(problem, pieces, torch.relu)


def normal_draws(outputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws of z, and the KL divergence from the standard normal."""
    loc, raw = outputs.chunk(2, -1)
    q = torch.distributions.Normal(loc, softplus(raw))
    standard = torch.distributions.Normal(0.0, 1.0)
    return q.sample((DRAWS,)), torch.distributions.kl_divergence(q, standard).sum(-1)


def stick_draws(outputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pieces of sticks at draws of the fractions, and log q - log p of each."""
    a, b = (softplus(outputs) + 0.01).chunk(2, -1)
    q = torch.distributions.Kumaraswamy(a, b)
    v = q.sample((DRAWS,))  # (draws, batch, sticks)
    pieces, left = [], torch.ones_like(v[..., 0])
    for index in range(v.shape[-1]):
        pieces.append(left * v[..., index])
        left = left - pieces[-1]
    prior = torch.distributions.Beta(torch.tensor(1.0).double(), 5.0)
    return torch.stack([*pieces, left], -1), (q.log_prob(v) - prior.log_prob(v)).sum(-1)


def clustered_losses(problem: Any) -> torch.Tensor:
    """Likewise, with the component summed out by torch's mixture."""
    w_dim, latent_dim, num = problem.w_dim, problem.latent_dim, len(problem.means)
    outputs = run(problem.encoder, problem.batches[0].double(), torch.tanh)
    w_out, z_out = outputs.split([2 * w_dim, 2 * latent_dim], -1)
    loc, raw = z_out.chunk(2, -1)
    q = torch.distributions.Independent(torch.distributions.Normal(loc, softplus(raw)), 1)
    z = q.sample((DRAWS,))
    means, scales = problem.means.double(), torch.ones_like(problem.means).double()
    kl = torch.zeros(1).double()
    if w_dim:
        loc, raw = w_out.chunk(2, -1)
        q_w = torch.distributions.Normal(loc, softplus(raw))
        w = q_w.sample((DRAWS,))
        flat = run(problem.components, w, torch.tanh)
        half = num * latent_dim
        means = flat[..., :half].reshape(*w.shape[:-1], num, latent_dim)
        scales = softplus(flat[..., half:]).reshape(*w.shape[:-1], num, latent_dim)
        kl = torch.distributions.kl_divergence(q_w, torch.distributions.Normal(0.0, 1.0)).sum(-1)
    prior = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=torch.zeros(means.shape[:-1]).double()),
        torch.distributions.Independent(torch.distributions.Normal(means, scales), 1),
    )
    return kl + q.log_prob(z) - prior.log_prob(z) - log_x(problem, z, torch.tanh)


def semi_supervised_losses(problem: Any, with_classifier: bool) -> torch.Tensor:
    """Minus the bound per datum of each draw, class by class; less the classifier's term if asked.

    Kingma et al. 2014, equations 6, 7 and 9, https://arxiv.org/abs/1406.5298
    """
    x, labels = (part for part in problem.batches[0])
    x, known, classes = x.double(), labels >= 0, problem.num_classes
    has_sticks = problem.code.site == "v"
    activation = torch.relu if has_sticks else torch.tanh
    q_y = torch.distributions.Categorical(logits=run(problem.classifier, x, activation))
    by_class = []
    for label in range(classes):
        one_hot = torch.zeros(len(x), classes, dtype=torch.float64)
        one_hot[:, label] = 1
        outputs = run(problem.encoder, torch.cat([x, one_hot], -1), activation)
        code, kl = stick_draws(outputs) if has_sticks else normal_draws(outputs)
        seen = torch.cat([code, one_hot.expand(DRAWS, -1, -1)], -1)
        likelihood = torch.distributions.Bernoulli(logits=run(problem.decoder, seen, activation))
        by_class.append(kl + math.log(classes) - likelihood.log_prob(x).sum(-1))
    cost = torch.stack(by_class, -1)  # (draws, batch, classes)
    own = cost.gather(-1, labels.clamp(min=0).expand(DRAWS, -1)[..., None]).squeeze(-1)
    summed = (q_y.probs * cost).sum(-1) - q_y.entropy()
    losses = torch.where(known, own, summed)
    if with_classifier:
        term = torch.where(known, q_y.log_prob(labels.clamp(min=0)), 0.0)
        losses = losses - problem.alpha * term
    return losses


STOCK = {
    "sticks": ["`Trace_ELBO`", "`JitTrace_ELBO`"],
    "gmvae": [
        "`TraceEnum_ELBO`",
        "`Trace_ELBO`",
        "`Trace_ELBO`, component drawn",
        "`JitTraceEnum_ELBO`",
    ],
}
STOCK["vade"] = STOCK["gmvae"]
STOCK["semi_supervised"] = ["`TraceEnum_ELBO`", "`TraceEnum_ELBO`, labelled apart"]
STOCK["semi_supervised sticks"] = STOCK["semi_supervised"]
OTHERS = ["hand-written eager", "hand-written eager, fused Adam", "ours, eager"]
COMPILED = "ours, compiled"
NAMES = {
    kind: [*(f"stock Pyro, {name}" for name in stock), *OTHERS, COMPILED]
    for kind, stock in STOCK.items()
}


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param(kind, name, marks=[pytest.mark.slow] if name == COMPILED else [])
        for kind, names in NAMES.items()
        for name in names
    ],
)
def test_every_contender_starts_from_the_same_loss(
    kind: str, name: str, module: Callable[[str], Any]
) -> None:
    problem, found = small(kind, module)
    assert list(found) == NAMES[kind]
    if kind.startswith("semi_supervised"):
        # Ours reports the bound, without the classifier's term that it optimises beside it.
        losses = semi_supervised_losses(problem, not name.startswith("ours")).mean(-1)
    else:
        losses = (sticks_losses if kind == "sticks" else clustered_losses)(problem).mean(-1)
    truth, truth_error = losses.mean().item(), losses.std().item() / math.sqrt(DRAWS)
    torch.manual_seed(0)
    step = found[name].start()
    taken = [step(1) for _ in range(100)]
    error = statistics.stdev(taken) / math.sqrt(len(taken))
    # Ours bounds scales from below by 1e-4, stock Pyro's and hand-written fractions are clipped.
    assert abs(statistics.mean(taken) - truth) < 4 * math.hypot(error, truth_error) + 1e-3


def test_clipping_keeps_stock_pyro_finite_at_first(module: Callable[[str], Any]) -> None:
    """Why stock Pyro is given a clipped Kumaraswamy, and that it does not help for ever."""
    room, stock = module("contenders.sticks"), module("contenders.stock_pyro")
    finite = []
    for family, small_a in (
        (pyro.distributions.Kumaraswamy, False),
        (room.ClippedKumaraswamy, False),
        (room.ClippedKumaraswamy, True),
    ):
        problem = room.sticks_problem(40, (16,), 5, 32, **SMALL)
        a, b = problem.encoder[-1][1].chunk(2)
        b.fill_(-4.0)  # softplus makes it 0.03; a is 1
        if small_a:
            a.fill_(-4.0)
        programs = room.programs(problem, family)
        entry = ("", lambda made=programs: made, pyro.infer.Trace_ELBO)
        step = stock.rows([entry], problem.batches, 1e-3, 32)[0].start()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Encountered NaN", UserWarning)
            finite.append(math.isfinite(step(2)))
    assert finite == [False, True, False]


@pytest.mark.slow
def test_step_time_adds_pairs_to_stored_ones(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("# Title\n<!-- step_time -->\n<!-- /step_time -->\n")
    options = ("--device", "cpu", "--rounds", 2, "--chunk-seconds", 0, "--out", tmp_path)
    for name in ("gmvae", "vade"):
        script("step_time.py", *options, "--readme", readme, "--write-readme", "--pairs", name)
    result = json.loads((tmp_path / "step_time-cpu.json").read_text())
    assert list(result["pairs"]) == ["gmvae", "vade"]
    for pair in result["pairs"].values():
        rows = {row["name"]: row for row in pair["contenders"]}
        assert {"ours, compiled", "hand-written eager", pair["stock"]} <= set(rows)
        assert all(math.isfinite(row["last_loss"]) for row in rows.values())
    header = readme.read_text().splitlines()[2]
    assert header.count("batch 20") == 2

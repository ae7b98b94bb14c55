"""The time of one optimisation step: ours beside stock Pyro, hand-written PyTorch, and NumPyro.

One process, contenders timed in interleaved rounds on the same two cores (or the same GPU), same
data, same initial values, same objective; ratios are taken within a round.

    python benchmarks/step_time.py                      # CPU, and CUDA when present
    python benchmarks/step_time.py --device cpu --rounds 31 --write-readme
    python benchmarks/step_time.py --readme-only        # from the stored results

Writes benchmarks/results/step_time-<device>.json, pair by pair (--pairs runs some and leaves the
others there as they are), and prints a table for each.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

# Torch and JAX share the GPU: JAX is not to take it all. Before the first import of JAX.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import pyro
import torch
from contenders import clustered, hand_written, ours, semi_supervised, sticks, stock_pyro
from contenders.problems import MixtureProblem, VAEProblem, mixture_problem, vae_problem
from harness import machine, report
from harness.timing import Contender, race

try:
    from contenders import numpyro_svi
except ImportError as error:
    numpyro_svi = None
    NO_NUMPYRO = f"NumPyro is left out ({error}); pip install 'pyro-models[benchmark]'"

README = Path(__file__).resolve().parent.parent / "README.md"
MARKER = "step_time"


@dataclass(frozen=True)
class Pair:
    """A problem, and who takes part.

    Args:
        title: Its name in tables.
        problem: Makes it on a device.
        contenders: Who can run it there, ours last.
        stock: The row of stock Pyro that ratios refer to.
        table: Pairs of the same number share a table of the README.
    """

    title: str
    problem: Callable[..., Any]
    contenders: Callable[[Any, torch.device], list[Contender]]
    stock: str
    table: int = 0


def _numpyro(problem: VAEProblem | MixtureProblem, device: torch.device) -> list[Contender]:
    if numpyro_svi is None:
        print(NO_NUMPYRO)
        return []
    jax_device = numpyro_svi.available(device.type)
    if jax_device is None:
        print(f"NumPyro is left out: this JAX has no {device.type}")
        return []
    return numpyro_svi.contenders(problem, jax_device)


def contenders(problem: VAEProblem | MixtureProblem, device: torch.device) -> list[Contender]:
    """Everyone who can run on this device, ours last."""
    return [
        *stock_pyro.contenders(problem),
        *hand_written.contenders(problem),
        *_numpyro(problem, device),
        *ours.contenders(problem),
    ]


PAIRS = {
    "vae-small": Pair(
        "VAE 784-200-50, batch 20",
        partial(vae_problem, 784, (200,), 50, 20),
        contenders,
        "stock Pyro, `Trace_ELBO`",
    ),
    "vae-large": Pair(
        "VAE 784-400-20, batch 128",
        partial(vae_problem, 784, (400,), 20, 128),
        contenders,
        "stock Pyro, `Trace_ELBO`",
    ),
    "mixture": Pair(
        "mixture of 8 Gaussians in 2-D, N = 1000",
        mixture_problem,
        contenders,
        "stock Pyro, `TraceEnum_ELBO`",
    ),
    "stick_breaking_vae": Pair(
        "stick-breaking VAE 784-500, 50 sticks, Kumaraswamy, batch 20",
        sticks.sticks_problem,
        sticks.contenders,
        "stock Pyro, `Trace_ELBO`",
        table=1,
    ),
    "gmvae": Pair(
        "GMVAE 784-200, z 10, w 2, K = 10, batch 20",
        partial(clustered.clustered_problem, True),
        clustered.contenders,
        "stock Pyro, `TraceEnum_ELBO`",
        table=1,
    ),
    "vade": Pair(
        "VaDE 784-200, z 10, K = 10, batch 20",
        partial(clustered.clustered_problem, False),
        clustered.contenders,
        "stock Pyro, `TraceEnum_ELBO`",
        table=1,
    ),
    "semi_supervised_vae": Pair(
        "M2 784-200, z 50, 10 classes, batch 20, half labelled",
        semi_supervised.semi_supervised_problem,
        semi_supervised.contenders,
        "stock Pyro, `TraceEnum_ELBO`",
        table=1,
    ),
    "semi_supervised_stick_breaking_vae": Pair(
        "the same with 50 sticks, Kumaraswamy, 784-500",
        partial(
            semi_supervised.semi_supervised_problem,
            hidden=(500,),
            code=semi_supervised.StickCode(),
        ),
        semi_supervised.contenders,
        "stock Pyro, `TraceEnum_ELBO`",
        table=1,
    ),
}


def measure(name: str, device: torch.device, args: argparse.Namespace) -> dict[str, Any]:
    """Run one pair on one device."""
    pair = PAIRS[name]
    print(f"{pair.title}, {device.type}", flush=True)
    torch.manual_seed(0)
    with machine.cold_compiler():
        machine.warm_up_compiler(device)  # no contender is to pay it for the others
        timings = race(
            pair.contenders(pair.problem(device=device), device),
            rounds=args.rounds,
            chunk_seconds=args.chunk_seconds,
            say=partial(print, flush=True),
        )
    entry = {
        "title": pair.title,
        "table": pair.table,
        "machine": machine.facts(device),
        "rounds": args.rounds,
        "chunk_seconds": args.chunk_seconds,
        **report.record(timings, pair.stock),
    }
    print(f"\n{report.pair_table(pair.title, entry)}\n", flush=True)
    return entry


def enter(path: Path, name: str, entry: dict[str, Any], device: torch.device) -> None:
    """Put one pair into the file of results; other pairs in it stay as they are."""
    found = report.load(path)["pairs"] if path.exists() else {}
    found[name] = entry
    order = [known for known in PAIRS if known in found]
    result = {
        "benchmark": "step_time",
        "device": device.type,
        "pairs": {known: found[known] for known in order},
    }
    report.save(result, path)


def write_readme(readme: Path, results: Path) -> None:
    """Put the table of all stored results into the README."""
    stored = [report.load(path) for path in sorted(results.glob("step_time-*.json"))]
    if not stored:
        raise SystemExit(f"no step_time-*.json in {results}; run without --readme-only first")
    text = report.replace_between(readme.read_text(), MARKER, report.readme_table(stored))
    readme.write_text(text)
    print(f"wrote the table into {readme}")


def devices(choice: str) -> list[torch.device]:
    """The devices asked for; "auto" is the CPU, and CUDA when present."""
    if choice != "auto":
        return [torch.device(choice)]
    return [torch.device(name) for name in ("cpu", "cuda") if _present(name)]


def _present(name: str) -> bool:
    return name == "cpu" or torch.cuda.is_available()


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=21, help="interleaved rounds (21)")
    parser.add_argument(
        "--chunk-seconds", type=float, default=0.2, help="time of one contender in a round (0.2)"
    )
    parser.add_argument("--pairs", nargs="+", choices=list(PAIRS), default=list(PAIRS))
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--threads", type=int, default=2, help="cores for torch and XLA (2)")
    parser.add_argument("--out", type=Path, default=report.RESULTS, help="folder for results")
    parser.add_argument("--readme", type=Path, default=README)
    parser.add_argument("--write-readme", action="store_true", help="put the table in the README")
    parser.add_argument("--readme-only", action="store_true", help="likewise, and time nothing")
    args = parser.parse_args(argv)
    if args.rounds < 1 or args.threads < 1 or args.chunk_seconds < 0:
        parser.error("--rounds and --threads are at least 1, --chunk-seconds at least 0")
    if args.device == "cuda" and not _present("cuda"):
        parser.error("--device cuda: torch sees no CUDA device here; use --device cpu")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    if not args.readme_only:
        machine.share_cores(args.threads)
        with pyro.validation_enabled(False):
            for device in devices(args.device):
                path = args.out / f"step_time-{device.type}.json"
                for name in args.pairs:
                    enter(path, name, measure(name, device, args), device)
                print(f"wrote {path}")
    if args.write_readme or args.readme_only:
        write_readme(args.readme, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())

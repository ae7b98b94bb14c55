"""Static MNIST by several objectives: log p(x) on the validation set, beside published figures.

The one-layer recipe of Burda et al. (2015): 784-200-200-50 and back, tanh, Bernoulli, output bias
at the training mean's logit, Adam 1e-3 with eps 1e-4 and their schedule; a linear sigmoid belief
network 200-784 for the objectives that need no path, its rate falling as a cosine to a tenth.
Shortened to 100 epochs of batch 100, the schedule in proportion, unless ``--full`` asks for theirs:
3280 epochs of batch 20.

    python benchmarks/objectives.py vae iwae dreg vimco reinforce
    python benchmarks/objectives.py iwae --full --minutes 60     # a sitting; run it again to go on

Every run writes checkpoints under --runs and continues from them. Needs train.npz and valid.npz as
binarized_mnist.py does; adds to benchmarks/results/objectives-<device>.json.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from harness import machine, report
from torch import Tensor

from pyro_models import pairs
from pyro_models.infer import (
    ELBO,
    IWAE,
    VIMCO,
    Burda,
    Checkpoint,
    Cosine,
    DoublyReparameterized,
    Fit,
    ScoreFunction,
    StopFit,
    Validation,
    fit,
    log_likelihood,
)

HOME = Path(__file__).resolve().parents[1]
DATA = HOME.parent / "shared" / "data" / "binarized_mnist"
ADAM = partial(torch.optim.Adam, lr=1e-3, eps=1e-4)


def _vae(objective: Any) -> Callable[[Tensor], pairs.Pair]:
    options = {"latent_dim": 50, "hidden": (200, 200), "objective": objective}
    return lambda x: pairs.build("vae", x, **options)


def _belief_network(objective: Any) -> Callable[[Tensor], pairs.Pair]:
    return lambda x: pairs.build("belief_network", x, latent_dim=200, objective=objective)


RUNS: dict[str, Callable[[Tensor], pairs.Pair]] = {
    "vae": _vae(ELBO()),
    "iwae": _vae(IWAE(5)),
    "dreg": _vae(IWAE(5, DoublyReparameterized())),
    "iwae50": _vae(IWAE(50)),
    "vimco": _belief_network(VIMCO(5)),
    "reinforce": _belief_network(ScoreFunction(5)),
}


@dataclass(frozen=True)
class Recipe:
    """How long, and in what batches."""

    epochs: int
    batch_size: int
    seed: int


class Parts(NamedTuple):
    """The images, as floats on the device."""

    train: Tensor
    valid: Tensor


def read(folder: Path, device: torch.device) -> Parts:
    """Training and validation images."""
    parts = []
    for name in ("train", "valid"):
        path = folder / f"{name}.npz"
        if not path.exists():
            raise SystemExit(f"{path} is not there; give its folder with --data")
        parts.append(torch.from_numpy(np.load(path, allow_pickle=False)["x"]).float().to(device))
    return Parts(*parts)


def train(
    name: str, pair: pairs.Pair, parts: Parts, recipe: Recipe, runs: Path, minutes: float
) -> Fit:
    """Fit, or go on with a fit, until it is done or the sitting is over."""
    start = time.perf_counter()
    looks = max(1, recipe.epochs // 20)

    def watch(event: Any) -> None:
        record = event.record
        if record.epoch % looks == 0:
            held_out = "none" if record.validation is None else f"{record.validation:.2f}"
            print(f"{name}: epoch {record.epoch}, bound {record.elbo:.2f}, held out {held_out}")
            sys.stdout.flush()
        if time.perf_counter() - start > 60 * minutes:
            raise StopFit

    folder = runs / f"{name}-{recipe.epochs}x{recipe.batch_size}-seed{recipe.seed}"
    return fit(
        pair.model,
        pair.guide,
        parts.train,
        objective=pair.objective,
        optimizer=ADAM,
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        schedule=Cosine(floor=0.1) if name in ("vimco", "reinforce") else Burda(recipe.epochs),
        validation=Validation(parts.valid, every=looks),
        compiled=True,
        seed=recipe.seed,
        progress=False,
        checkpoint=Checkpoint(folder, every_epochs=max(1, recipe.epochs // 50)),
        resume=folder.exists(),
        callbacks=[watch],
    )


def judge(result: Fit, valid: Tensor, num_samples: int) -> dict[str, Any]:
    """log p(x) of the validation set, with what the estimate rests on."""
    start = time.perf_counter()
    found = log_likelihood(result.model, result.guide, valid, num_samples)
    return {
        "num_samples": num_samples,
        "valid": len(valid),
        "nll": -found.mean,
        "standard_error_over_data": found.value.std().item() / math.sqrt(len(valid)),
        "resting_on_one_draw": (found.effective_sample_size < 2).double().mean().item(),
        "seconds": time.perf_counter() - start,
    }


def describe(pair: pairs.Pair, result: Fit, recipe: Recipe) -> dict[str, Any]:
    """The training in figures."""
    history = result.history
    shown = history[:: max(1, len(history) // 20)]
    return {
        "objective": repr(pair.objective),
        "epochs": len(history),
        "of": recipe.epochs,
        "batch_size": recipe.batch_size,
        "seed": recipe.seed,
        "compiled": result.compiled,
        "training_bound": {record.epoch: record.elbo for record in [*shown, *history[-3:]]},
        "validation_bound": {r.epoch: r.validation for r in history if r.validation is not None},
        "stopped": str(result.stop_reason.value),
    }


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="+", choices=sorted(RUNS), metavar="RUN", help=str([*RUNS]))
    parser.add_argument("--full", action="store_true", help="3280 epochs of batch 20")
    parser.add_argument("--epochs", type=int, help="instead of 100, or of 3280")
    parser.add_argument("--minutes", type=float, default=math.inf, help="of one run's sitting")
    parser.add_argument("--num-samples", type=int, default=5000, help="of log p(x) (5000)")
    parser.add_argument("--limit", type=int, help="judge on the first rows of the validation set")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=DATA, help=f"folder ({DATA})")
    parser.add_argument("--runs", type=Path, default=HOME / "runs" / "objectives")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=report.RESULTS, help="folder for results")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device here; use --device cpu")
    return args


def enter(path: Path, key: str, entry: dict[str, Any], device: torch.device) -> None:
    """Add one run to the file of results."""
    results = json.loads(path.read_text()) if path.exists() else {"runs": {}}
    results |= {"benchmark": "objectives", "machine": machine.facts(device)}
    results["runs"][key] = entry
    report.save(results, path)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    device = torch.device(args.device)
    torch.set_num_threads(args.threads)
    parts = read(args.data, device)
    recipe = Recipe(
        args.epochs or (3280 if args.full else 100), 20 if args.full else 100, args.seed
    )
    with pyro.validation_enabled(False):
        for name in args.names:
            torch.manual_seed(recipe.seed)
            pair = RUNS[name](parts.train)
            result = train(name, pair, parts, recipe, args.runs, args.minutes)
            entry = describe(pair, result, recipe) | judge(
                result, parts.valid[: args.limit], args.num_samples
            )
            key = f"{name}, {recipe.epochs} epochs of batch {recipe.batch_size}, seed {args.seed}"
            enter(args.out / f"objectives-{args.device}.json", key, entry, device)
            print(f"{key}: {entry['nll']:.2f} nats on {entry['valid']} data", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

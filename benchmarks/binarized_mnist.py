"""A VAE on binarised MNIST: ours beside a hand-written eager PyTorch loop, bound and wall time.

784-200-200-50 and back, tanh, Bernoulli; Adam 1e-3 with eps 1e-4 on the loss per datum, batch 100,
output bias at the training mean's logit; then a 500-sample importance-weighted bound on the whole
validation set. Both start from the same initial values, train on the same device, and are judged
each by its own estimator. Repeats alternate between the two, each in a process of its own. The
first is cold: nothing that a compiler ever wrote on this machine is there. The others are warm:
they find what the first wrote, as every run after a machine's first does.

    python benchmarks/binarized_mnist.py                        # about nine minutes on two cores
    python benchmarks/binarized_mnist.py --epochs 1 --limit 1000 --num-samples 10   # a smoke run

Needs train.npz and valid.npz (key "x", rows of 784 zeros and ones) in --data, and writes
benchmarks/results/binarized_mnist-<device>.json.
"""

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from contenders import ours
from contenders.hand_written import VAELoss
from contenders.problems import network
from harness import machine, report
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_models import pairs
from pyro_models.infer import Fit, fit, log_likelihood

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "binarized_mnist"
HIDDEN, LATENT_DIM, BATCH = (200, 200), 50, 100
ADAM = partial(torch.optim.Adam, lr=1e-3, eps=1e-4)


@dataclass(frozen=True)
class Outcome:
    """One training run and its evaluation; bounds in nats per datum, times in seconds."""

    training_seconds: float
    """From the call that trains to its return, compilation included."""
    startup_seconds: float | None
    """What the first epoch took above the median of the others: compilation, for the most part."""
    epoch_seconds: list[float]
    """Time of each epoch."""
    evaluation_seconds: float
    """Time of the bound on the validation set."""
    bound: float
    """The importance-weighted bound, mean over the validation set; higher is better."""
    bound_standard_error: float
    """Its standard error over the data of the validation set."""
    compiled: bool
    """Whether the steps ran as one graph."""


@dataclass(frozen=True)
class Training:
    """Times of a training run."""

    seconds: float
    epoch_ends: list[float]
    """Seconds from the start to the end of each epoch."""
    compiled: bool = False

    @property
    def epoch_seconds(self) -> list[float]:
        return [end - start for start, end in pairwise((0.0, *self.epoch_ends))]

    @property
    def startup_seconds(self) -> float | None:
        first, *rest = self.epoch_seconds
        return first - statistics.median(rest) if rest else None


def read(folder: Path, limit: int | None, device: torch.device) -> tuple[Tensor, Tensor]:
    """Training and validation images as floats on the device."""
    parts = []
    for name in ("train", "valid"):
        path = folder / f"{name}.npz"
        if not path.exists():
            raise SystemExit(f"{path} is not there; give its folder with --data")
        x = np.load(path, allow_pickle=False)["x"][:limit]
        parts.append(torch.from_numpy(x).float().to(device))
    return parts[0], parts[1]


def initial_pair(train: Tensor, seed: int) -> pairs.Pair:
    """The pair that both sides start from, output bias at the training mean's logit."""
    torch.manual_seed(seed)
    pair = pairs.vae(train.shape[1], latent_dim=LATENT_DIM, hidden=HIDDEN)
    pair.model.to(train.device)
    pair.guide.to(train.device)
    pair.model.initialize(train)
    return pair


def hand_written_module(pair: pairs.Pair) -> VAELoss:
    """A copy of the pair's values in plain torch modules."""
    encoder, decoder = ours.layers(pair.guide.encoder), ours.layers(pair.model.decoder)
    return VAELoss(network(encoder), network(decoder))


def wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize()


def train_by_hand(module: nn.Module, train: Tensor, epochs: int) -> Training:
    """The loop one would write."""
    start = time.perf_counter()
    ends = []
    optimizer = ADAM(module.parameters())
    for _ in range(epochs):
        for index in torch.randperm(len(train), device=train.device).split(BATCH):
            optimizer.zero_grad()
            module(train[index]).backward()
            optimizer.step()
        wait(train)
        ends.append(time.perf_counter() - start)
    return Training(time.perf_counter() - start, ends)


def train_ours(pair: pairs.Pair, train: Tensor, epochs: int, seed: int) -> tuple[Fit, Training]:
    """``fit``, compiled."""
    start = time.perf_counter()
    result = fit(
        pair.model,
        pair.guide,
        train,
        objective=pair.objective,
        optimizer=ADAM,
        epochs=epochs,
        batch_size=BATCH,
        compiled=True,
        seed=seed,
        progress=False,
    )
    wait(train)
    seconds = time.perf_counter() - start
    if result.fallback_reason is not None:
        raise RuntimeError(f"the step is not compiled: {result.fallback_reason}")
    return result, Training(seconds, [e.seconds for e in result.history], result.compiled)


@torch.no_grad()
def bound_by_hand(module: VAELoss, x: Tensor, num_samples: int, rows: int = 10_000) -> Tensor:
    """log (1/K) sum_k p(x, z_k) / q(z_k | x) by datum, independent of the package's estimator."""
    bounds = []
    for part in x.split(max(1, rows // num_samples)):
        loc, scale = module.posterior(part)  # (B, latent_dim)
        noise = torch.randn(num_samples, *loc.shape, device=x.device)
        z = loc + scale * noise  # (K, B, latent_dim)
        logits = module.decoder(z)
        # log p(z) - log q(z | x): the constants cancel.
        weight = 0.5 * (noise.square() - z.square()).sum(-1) + scale.log().sum(-1)
        # log p(x | z) = sum_j x_j l_j - softplus(l_j)
        weight = weight + (part * logits - F.softplus(logits)).sum(-1)  # (K, B)
        bounds.append(weight.logsumexp(0) - math.log(num_samples))
    return torch.cat(bounds)


def _outcome(training: Training, evaluate: Callable[[], Tensor]) -> Outcome:
    start = time.perf_counter()
    values = evaluate()
    return Outcome(
        training_seconds=training.seconds,
        startup_seconds=training.startup_seconds,
        epoch_seconds=training.epoch_seconds,
        evaluation_seconds=time.perf_counter() - start,
        bound=values.mean().item(),
        bound_standard_error=values.std().item() / math.sqrt(len(values)),
        compiled=training.compiled,
    )


def run_hand_written(train: Tensor, valid: Tensor, args: argparse.Namespace, seed: int) -> Outcome:
    module = hand_written_module(initial_pair(train, seed))
    torch.manual_seed(seed)
    training = train_by_hand(module, train, args.epochs)
    return _outcome(training, lambda: bound_by_hand(module, valid, args.num_samples))


def run_ours(
    train: Tensor, valid: Tensor, args: argparse.Namespace, seed: int
) -> tuple[Outcome, pairs.Pair]:
    pair = initial_pair(train, seed)
    torch.manual_seed(seed)
    result, training = train_ours(pair, train, args.epochs, seed)

    def evaluate() -> Tensor:
        return log_likelihood(result.model, result.guide, valid, args.num_samples).value

    return _outcome(training, evaluate), pair


def cross_check(pair: pairs.Pair, x: Tensor, num_samples: int) -> dict[str, float]:
    """The same parameters judged by both estimators, which have to agree."""
    theirs = bound_by_hand(hand_written_module(pair), x, num_samples).double().cpu()
    mine = log_likelihood(pair.model, pair.guide, x, num_samples).value
    # Where one draw dominates the delta method is too sure of itself; the spread over data is not.
    difference = mine - theirs
    return {
        "num_data": len(x),
        "difference": difference.mean().item(),
        "standard_error": difference.std().item() / math.sqrt(len(x)),
    }


@dataclass(frozen=True)
class Repeat:
    """Both ways from one seed."""

    ours: Outcome
    hand_written: Outcome
    cross_check: dict[str, float]
    """Our parameters judged by both estimators."""

    @property
    def time_ratio(self) -> float:
        """Training time, ours over hand-written."""
        return self.ours.training_seconds / self.hand_written.training_seconds


def run_repeat(args: argparse.Namespace, seed: int) -> Repeat:
    """What the process of one repeat does."""
    machine.share_cores(args.threads)
    with pyro.validation_enabled(False):
        train, valid = read(args.data, args.limit, torch.device(args.device))
        by_hand = run_hand_written(train, valid, args, seed)
        mine, pair = run_ours(train, valid, args, seed)
        return Repeat(mine, by_hand, cross_check(pair, valid[:200], args.num_samples))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    repeats = []
    with machine.empty_caches():
        for seed in range(args.repeats):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                found = process.submit(run_repeat, args, seed).result()
            repeats.append(found)
            for name, outcome in (("hand-written", found.hand_written), ("ours", found.ours)):
                print(f"seed {seed}, {name}: {describe(outcome)}", flush=True)
    runs = {
        "ours": [repeat.ours for repeat in repeats],
        "hand-written": [repeat.hand_written for repeat in repeats],
    }
    device = torch.device(args.device)
    train, valid = read(args.data, args.limit, torch.device("cpu"))
    return {
        "benchmark": "binarized_mnist",
        "device": device.type,
        "machine": machine.facts(device),
        "epochs": args.epochs,
        "num_samples": args.num_samples,
        "train": len(train),
        "valid": len(valid),
        "runs": {name: [asdict(o) for o in outcomes] for name, outcomes in runs.items()},
        "bound": {name: statistics.mean(o.bound for o in out) for name, out in runs.items()},
        "training_time_ours_over_hand_written": {
            "cold": repeats[0].time_ratio,
            "warm": [repeat.time_ratio for repeat in repeats[1:]],
        },
        "cross_check": repeats[-1].cross_check,
    }


def describe(outcome: Outcome) -> str:
    first = outcome.startup_seconds
    return (
        f"log p(x) >= {outcome.bound:.2f} ± {outcome.bound_standard_error:.2f} nats per datum, "
        f"training {outcome.training_seconds:.1f} s"
        + (f" ({first:.1f} s of it start-up)" if first is not None else "")
        + f", evaluation {outcome.evaluation_seconds:.1f} s"
    )


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA, help=f"folder ({DATA})")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--num-samples", type=int, default=500, help="of the bound (500)")
    parser.add_argument("--repeats", type=int, default=3, help="seeds, the first of them cold (3)")
    parser.add_argument("--limit", type=int, help="use the first rows of each file only")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=report.RESULTS, help="folder for results")
    args = parser.parse_args(argv)
    counts = (args.epochs, args.num_samples, args.repeats, args.threads)
    if min(counts) < 1 or (args.limit is not None and args.limit < BATCH):
        parser.error(f"counts are at least 1, and --limit at least the batch size, {BATCH}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device here; use --device cpu")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    machine.share_cores(args.threads)
    result = measure(args)
    ratio = result["training_time_ours_over_hand_written"]
    warm = f"; {statistics.median(ratio['warm']):.2f} warm, the median" if ratio["warm"] else ""
    print(f"training time, ours ÷ hand-written: {ratio['cold']:.2f} cold{warm}")
    print(f"the two estimators on the same parameters: {result['cross_check']}")
    path = args.out / f"binarized_mnist-{args.device}.json"
    report.save(result, path)
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

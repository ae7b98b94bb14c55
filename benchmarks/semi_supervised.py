"""Digits of which few have labels: deep generative models beside what sees the labels alone.

    python benchmarks/semi_supervised.py       # 10 % and 1 %, 5 splits; run it again to go on

In each split a third of the embedded digits is held out and looked at once, at the end; of the rest
the share of labels is drawn evenly over the classes. The stick-breaking form (Nalisnick and Smyth
2017) and M2 (Kingma et al. 2014) learn from all training data and the few labels; the k nearest
neighbours, a logistic regression and a perceptron of the encoder's size from the labelled data
alone. The weight of the classifier's term is 10 N in the terms of Kingma et al., whose 0.1 N the
bound of grey levels outweighs here. It was chosen on split 100, which is none of the five.

Adds to benchmarks/results/semi_supervised-cpu.json, one split at a time.
"""

import argparse
import math
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from harness import machine, report
from harness.scores import mean_and_spread, neighbour_errors, percent
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from torch import Tensor, nn

from pyro_models import data, pairs
from pyro_models.infer import ELBO, Cosine, LinearWarmup, Remedies, Supervised, fit

CPU = torch.device("cpu")
STICKS, M2 = "semi_supervised_stick_breaking_vae", "semi_supervised_vae"
MODELS = (STICKS, M2)
SITES = {STICKS: "v", M2: "z"}
ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}
CLASSES, BATCH = 10, 100


def cut(
    share: float, seed: int, limit: int | None, binary: bool
) -> tuple[data.Data, Tensor, data.Data]:
    """Training data, the labels that are left of them, and the held-out data."""
    parts = data.holdout(data.digits(), 1 / 3, seed=seed, stratify=True)
    train = parts.train if limit is None else parts.train.subset(slice(0, limit))
    y, test = data.hide_labels(train.labels, share, seed), parts.held_out
    if binary:
        black_and_white = data.StaticBinarization(data.Threshold(0.5))
        train, test = train.map(black_and_white), test.map(black_and_white)
    return train, y, test


def generative(
    kind: str, train: data.Data, y: Tensor, test: data.Data, seed: int, args: argparse.Namespace,
) -> float:  # fmt: skip
    """Test error of a model of all data and the few labels."""
    torch.manual_seed(seed)
    weight = args.weight * len(train) / int((y >= 0).sum())
    chosen: dict[str, Any] = (
        {"truncation": args.truncation} if kind == STICKS else {"latent_dim": args.latent_dim}
    )
    if args.activation is not None:
        chosen["activation"] = ACTIVATIONS[args.activation]
    pair = pairs.build(
        kind,
        (train.x, y),
        num_classes=CLASSES,
        hidden=(args.hidden,),
        objective=Supervised(ELBO(summed=("y_unobserved",)), "y", weight),
        **chosen,
    )
    steps = int(args.warm_up * args.epochs * math.ceil(len(train) / BATCH))
    fit(
        pair.model,
        pair.guide,
        (train.x, y),
        objective=pair.objective,
        optimizer=partial(torch.optim.Adam, lr=args.rate),
        schedule=Cosine(),
        kl=Remedies(weight={SITES[kind]: LinearWarmup(steps)}) if steps else None,
        epochs=args.epochs,
        batch_size=BATCH,
        seed=seed,
        progress=False,
        compiled=args.compiled,
    )
    guessed = pairs.classify(pair, test.x).argmax(1)
    return float((guessed != test.labels).double().mean())


def beside(
    x: np.ndarray, labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray, seed: int,
    args: argparse.Namespace,
) -> dict[str, float]:  # fmt: skip
    """Test errors of what sees the labelled data alone."""
    counts = (1, 3, 5)
    nearest = neighbour_errors(x, labels, test, test_labels, counts)
    errors = {f"{count} nearest neighbours": nearest[count] for count in counts}
    fits: dict[str, Callable[[], Any]] = {
        "logistic regression": partial(LogisticRegression, max_iter=1000),
        "perceptron": partial(
            MLPClassifier, (args.hidden,), max_iter=args.epochs, random_state=seed
        ),
    }
    for name, make in fits.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            errors[name] = float((make().fit(x, labels).predict(test) != test_labels).mean())
    return errors


def measure(share: float, path: Path, args: argparse.Namespace) -> list[dict[str, float]]:
    """Errors by split of one share of labels; what the results have already is not done again."""
    found = []
    for seed in range(args.first_split, args.first_split + args.splits):
        key = f"{share:g} of labels, split {seed}, {args.epochs} epochs"
        done = report.load(path).get("splits", {}) if path.exists() else {}
        entry = done.get(key, {"errors": {}, "options": {}})
        for fitted in ("beside", *args.models):
            options = _options(fitted, args)
            if entry["options"].get(fitted) == options:
                continue
            errors = split(share, seed, fitted, args)
            entry["errors"] |= errors
            entry["options"][fitted] = options
            report.enter(path, "semi_supervised", ("splits", key), entry, machine.facts(CPU))
        print(f"{key}: {entry['errors']}", flush=True)
        found.append(entry["errors"])
    return found


def _options(fitted: str, args: argparse.Namespace) -> dict[str, Any]:
    """What a result depends on besides share, split and epochs."""
    names = ["hidden", "limit", "binary"]
    if fitted != "beside":
        names += ["rate", "weight", "warm_up", "activation"]
        names.append("truncation" if fitted == STICKS else "latent_dim")
    return {name: getattr(args, name) for name in names}


def split(share: float, seed: int, fitted: str, args: argparse.Namespace) -> dict[str, float]:
    """Errors on one split, by name: of one model, or of what stands beside."""
    train, y, test = cut(share, seed, args.limit, args.binary)
    if fitted != "beside":
        return {fitted: generative(fitted, train, y, test, seed, args)}
    known = train.subset(y >= 0)
    arrays = (known.x, known.labels, test.x, test.labels)
    return beside(*(array.numpy() for array in arrays), seed, args)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shares", type=float, nargs="+", default=(0.1, 0.01))
    parser.add_argument("--models", nargs="*", choices=MODELS, default=MODELS)
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--first-split", type=int, default=0, help="100 is for choosing options")
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--hidden", type=int, default=200, help="width of the networks (200)")
    parser.add_argument("--rate", type=float, default=1e-3, help="of Adam at the start (1e-3)")
    parser.add_argument(
        "--weight", type=float, default=10.0, help="of the classifier's term: this times N (10)"
    )
    parser.add_argument("--truncation", type=int, default=50, help="pieces of the stick (50)")
    parser.add_argument("--latent-dim", type=int, default=2, help="of M2's z (2)")
    parser.add_argument("--activation", choices=ACTIVATIONS, help="instead of the pair's own")
    parser.add_argument(
        "--warm-up", type=float, default=0.0, help="share of the steps until KL counts whole (0)"
    )
    parser.add_argument("--binary", action="store_true", help="pixels above a half are 1, else 0")
    parser.add_argument("--limit", type=int, help="take the first so many training data only")
    parser.add_argument("--eager", dest="compiled", action="store_false")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=report.RESULTS, help="folder for results")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    torch.set_num_threads(args.threads)
    path = args.out / "semi_supervised-cpu.json"
    with pyro.validation_enabled(False):
        found = {share: measure(share, path, args) for share in args.shares}
    columns = " | ".join(f"{share:.0%} of labels" for share in found)
    print(f"\n| test error, %, mean ± sd over splits | {columns} |\n|---|" + "---|" * len(found))
    for name in next(iter(found.values()))[0]:
        scores = (mean_and_spread([errors[name] for errors in splits]) for splits in found.values())
        print(f"| {name} | {' | '.join(map(percent, scores))} |")
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

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
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
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
from torch import Tensor

from pyro_models import data, pairs
from pyro_models.infer import ELBO, Cosine, Supervised, fit

CPU = torch.device("cpu")
MODELS = ("semi_supervised_stick_breaking_vae", "semi_supervised_vae")
CLASSES = 10


def cut(share: float, seed: int, limit: int | None) -> tuple[data.Data, Tensor, data.Data]:
    """Training data, which of them have labels, and the held-out data."""
    parts = data.holdout(data.digits(), 1 / 3, seed=seed, stratify=True)
    train = parts.train if limit is None else parts.train.subset(slice(0, limit))
    labels = train.labels
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(train), generator=generator)
    place = torch.empty(len(train), dtype=torch.long)  # of a datum within its class
    for label in range(CLASSES):
        own = order[labels[order] == label]
        place[own] = torch.arange(len(own))
    # Class by class in turn, until there are enough: each has the same number, within one.
    rank = torch.argsort(place * CLASSES + labels)
    is_labelled = torch.zeros(len(train), dtype=torch.bool)
    is_labelled[rank[: max(CLASSES, round(share * len(train)))]] = True
    return train, is_labelled, parts.held_out


def generative(
    kind: str, train: data.Data, is_labelled: Tensor, test: data.Data, seed: int,
    args: argparse.Namespace,
) -> float:  # fmt: skip
    """Test error of a model of all data and the few labels."""
    torch.manual_seed(seed)
    # What was taken away is not there to be seen.
    y = torch.where(is_labelled, train.labels, -1)
    weight = args.weight * len(train) / int(is_labelled.sum())
    objective = Supervised(ELBO(summed=("y_unobserved",)), "y", weight)
    pair = pairs.build(
        kind, (train.x, y), num_classes=CLASSES, hidden=(args.hidden,), objective=objective
    )
    fit(
        pair.model,
        pair.guide,
        (train.x, y),
        objective=pair.objective,
        optimizer=partial(torch.optim.Adam, lr=args.rate),
        schedule=Cosine(),
        epochs=args.epochs,
        batch_size=100,
        seed=seed,
        progress=False,
        compiled=args.compiled,
    )
    with torch.no_grad():
        guessed = pair.guide.classify(test.x).argmax(1)
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
    done = report.load(path).get("splits", {}) if path.exists() else {}
    for seed in range(args.splits):
        key = f"{share:g} of labels, split {seed}, {args.epochs} epochs"
        if not _has(done, key, args):
            done[key] = split(share, seed, args)
            report.enter(path, "semi_supervised", ("splits", key), done[key], machine.facts(CPU))
        print(f"{key}: {done[key]['errors']}", flush=True)
    return [done[f"{share:g} of labels, split {seed}, {args.epochs} epochs"]["errors"]
            for seed in range(args.splits)]  # fmt: skip


def _has(done: Mapping[str, Any], key: str, args: argparse.Namespace) -> bool:
    """Whether the results have a split, made with the same options."""
    options = ("hidden", "rate", "weight")
    return key in done and all(done[key][name] == getattr(args, name) for name in options)


def split(share: float, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Everyone on one split."""
    train, is_labelled, test = cut(share, seed, args.limit)
    known = train.subset(is_labelled)
    errors = beside(
        known.x.numpy(), known.labels.numpy(), test.x.numpy(), test.labels.numpy(), seed, args
    )
    for kind in args.models:
        errors[kind] = generative(kind, train, is_labelled, test, seed, args)
    return {
        "labels": len(known),
        "train": len(train),
        "test": len(test),
        "epochs": args.epochs,
        "hidden": args.hidden,
        "rate": args.rate,
        "weight": args.weight,
        "errors": errors,
    }


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shares", type=float, nargs="+", default=(0.1, 0.01))
    parser.add_argument("--models", nargs="*", choices=MODELS, default=MODELS)
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--hidden", type=int, default=200, help="width of the networks (200)")
    parser.add_argument("--rate", type=float, default=1e-3, help="of Adam at the start (1e-3)")
    parser.add_argument(
        "--weight", type=float, default=10.0, help="of the classifier's term: this times N (10)"
    )
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

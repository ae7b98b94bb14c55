"""How well a pair that learns from few labels tells the others: beside what sees the few alone."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from pyro_models import pairs
from pyro_models.cli.fitted import Fitted
from pyro_models.cli.latents import Latents
from pyro_models.cli.recipe import Prepared
from pyro_models.data import Standardization

_FEW = 5000
_BESIDE: dict[str, Callable[[], Any]] = {
    "nearest neighbour": partial(KNeighborsClassifier, 1),
    "logistic regression": partial(LogisticRegression, max_iter=1000),
}


def accuracy(pair: Fitted, prepared: Prepared, latents: Latents) -> str:
    """How many held-out data are told right, in words; empty where none of them has a label.

    Args:
        pair: The pair.
        prepared: The data.
        latents: Its latents.
    """
    labels = prepared.parts.test.labels
    if prepared.known is None or labels is None or not bool((labels >= 0).any()):
        return ""
    told = (guessed(pair, prepared) == labels)[labels >= 0]
    shares = {"classes right": float(told.double().mean()), **_beside(prepared, labels)}
    count = int((prepared.known >= 0).sum())
    first, *others = [f"{name} {share:.1%}" for name, share in shares.items()]
    simple = f" ({', '.join(others)})" if others else ""
    return f"{first} by {count} labels{simple}"


def guessed(pair: Fitted, prepared: Prepared) -> Int[Tensor, " n"]:
    """The most probable class of each datum of the test part."""
    seen = prepared.seen(prepared.parts.test).to(pair.device)
    return pairs.classify(pair.guide, seen).argmax(-1).cpu()


def counts(pair: Fitted, prepared: Prepared) -> Int[Tensor, "guessed classes"] | None:
    """Test data by the class that is told and the one they have; None where none is known."""
    labels, size = prepared.parts.test.labels, prepared.num_classes
    if labels is None or size is None or not bool((labels >= 0).any()):
        return None
    is_known = labels >= 0
    cell = guessed(pair, prepared)[is_known] * size + labels[is_known]
    return torch.bincount(cell, minlength=size * size).reshape(size, size)


def _beside(prepared: Prepared, labels: Tensor) -> dict[str, float]:
    """Shares told right by simple classifiers of the labelled data alone, where these are few."""
    known = prepared.known
    if known is None or int((known >= 0).sum()) > _FEW or len(known[known >= 0].unique()) < 2:
        return {}
    train, test = prepared.parts.train.x, prepared.parts.test.x
    if prepared.parts.train.image_shape is None:  # columns of different units
        scale = Standardization.fit(train)
        train, test = scale(train), scale(test)
    rows = (train[known >= 0].numpy(), known[known >= 0].numpy())
    asked, right = test[labels >= 0].numpy(), labels[labels >= 0].numpy()
    shares = {}
    for name, make in _BESIDE.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            shares[name] = float((make().fit(*rows).predict(asked) == right).mean())
    return shares

"""Data sets and checks that the tests of several models share."""

import torch
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.decomposition import PCA
from torch import Tensor


def standardised(name: str) -> Tensor:
    """A set with columns of mean 0 and variance 1, in float64; of digits ten principal axes."""
    sets = {"iris": load_iris, "wine": load_wine, "breast_cancer": load_breast_cancer}
    if name == "digits":
        values = PCA(10, random_state=0).fit_transform(load_digits().data)
    else:
        values = sets[name]().data
    return torch.as_tensor((values - values.mean(0)) / values.std(0))


def clusters(each: int = 40, dtype: torch.dtype = torch.float64) -> Tensor:
    """Four clusters, six standard deviations apart."""
    centers = torch.tensor([[0.0, 0.0], [6.0, 0.0], [0.0, 6.0], [6.0, 6.0]], dtype=dtype)
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(4, each, 2, dtype=dtype, generator=generator)
    return (centers.unsqueeze(1) + noise).flatten(0, 1)


def used(log_responsibilities: Tensor) -> int:
    """How many components are the most probable one of some datum."""
    return int(log_responsibilities.argmax(-1).unique().numel())

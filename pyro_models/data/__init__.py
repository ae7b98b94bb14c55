"""Data: embedded sets, torchvision's image sets, files and arrays; splits; transforms.

Example:
    >>> from pyro_models import data
    >>> parts = data.split(data.digits(), seed=0)
    >>> parts.train
    Data('digits', x=(1437, 64) float32, labels=10 classes, image_shape=(1, 8, 8))
    >>> binary = parts.test.map(data.StaticBinarization(data.Stochastic(seed=0)))
    >>> binary.x.unique()
    tensor([0., 1.])
"""

from pyro_models.arrays import ArrayLike, check_finite
from pyro_models.data.arrays import as_labels, as_tensor
from pyro_models.data.binarization import (
    DynamicBinarization,
    StaticBinarization,
    Stochastic,
    Threshold,
)
from pyro_models.data.densities import Dequantization, LogitTransform, Standardization
from pyro_models.data.embedded import breast_cancer, digits, iris, wine
from pyro_models.data.files import load
from pyro_models.data.images import EMNISTSplit, emnist, fashion_mnist, kmnist, mnist
from pyro_models.data.record import Data, from_array
from pyro_models.data.splits import Holdout, Split, hide_labels, holdout, split
from pyro_models.data.transforms import Compose, DensityTransform, Transform

__all__ = [
    "ArrayLike",
    "Compose",
    "Data",
    "DensityTransform",
    "Dequantization",
    "DynamicBinarization",
    "EMNISTSplit",
    "Holdout",
    "LogitTransform",
    "Split",
    "Standardization",
    "StaticBinarization",
    "Stochastic",
    "Threshold",
    "Transform",
    "as_labels",
    "as_tensor",
    "breast_cancer",
    "check_finite",
    "digits",
    "emnist",
    "fashion_mnist",
    "from_array",
    "hide_labels",
    "holdout",
    "iris",
    "kmnist",
    "load",
    "mnist",
    "split",
    "wine",
]

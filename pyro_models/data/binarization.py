"""From grey pixels to black and white ones, once and for all or anew each time."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_models.data.transforms import Transform, check_unit_interval
from pyro_models.errors import OptionError


@dataclass(frozen=True)
class Threshold:
    """A pixel is white if it is brighter than ``value``.

    Args:
        value: In [0, 1).

    Example:
        >>> Threshold(0.3)
        Threshold(value=0.3)
    """

    value: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.value < 1:
            raise OptionError(f"threshold {self.value} lies outside [0, 1); give, say, 0.5")


@dataclass(frozen=True)
class Stochastic:
    """A pixel is white with the probability of its grey value, by one draw fixed by ``seed``.

    Args:
        seed: Decides the draw; the same on every device. Torch's own generator is not touched.

    Example:
        >>> Stochastic(seed=1)
        Stochastic(seed=1)
    """

    seed: int = 0


@dataclass(frozen=True)
class StaticBinarization(Transform):
    r"""Binarise once: every epoch sees the same black and white pixels.

    With ``Stochastic(seed)``, :math:`y \sim \mathrm{Bernoulli}(x)`, drawn once, which is how the
    fixed binarised MNIST was made. The draw goes by a datum's place in the tensor, so apply it to
    the whole set, before the split and never to single minibatches: ``data.map(transform)``. With
    ``Threshold(value)``, :math:`y = [x > \mathrm{value}]`, for which this does not matter.

    Args:
        rule: Which of the two.

    References:
        Salakhutdinov and Murray (2008), On the quantitative analysis of deep belief networks,
        https://doi.org/10.1145/1390156.1390266; Larochelle and Murray (2011), The neural
        autoregressive distribution estimator, https://proceedings.mlr.press/v15/larochelle11a

    Example:
        >>> StaticBinarization(Threshold(0.5))(torch.tensor([[0.2, 0.5, 0.9]]))
        tensor([[0., 0., 1.]])
    """

    rule: Threshold | Stochastic

    def __post_init__(self) -> None:
        if not isinstance(self.rule, Threshold | Stochastic):
            raise OptionError(f"rule={self.rule!r} is neither Threshold(0.5) nor Stochastic(seed)")

    @property
    def random(self) -> bool:
        """No: the draw is fixed by its seed."""
        return False

    def check(self, x: Tensor) -> None:
        """Refuse data outside [0, 1]."""
        check_unit_interval(x, "StaticBinarization")

    def apply(
        self, x: Float[Tensor, "num_data *datum"], *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "num_data *datum"]:
        """The binarised data."""
        if isinstance(self.rule, Threshold):
            return (x > self.rule.value).to(x.dtype)
        # Drawn on the CPU, where the numbers are the same whatever device the data is on.
        own = torch.Generator().manual_seed(self.rule.seed)
        noise = torch.rand(x.shape, generator=own, dtype=torch.float32)
        return (noise.to(x.device) < x).to(x.dtype)


@dataclass(frozen=True)
class DynamicBinarization(Transform):
    r"""Binarise anew at each call: :math:`y \sim \mathrm{Bernoulli}(x)`.

    Given to ``fit``, every epoch sees other black and white pixels, which keeps a model from
    learning one draw by heart. Bounds on such data are not comparable with those on static data.

    References:
        Burda, Grosse and Salakhutdinov (2015), Importance weighted autoencoders,
        https://arxiv.org/abs/1509.00519

    Example:
        >>> x = torch.full((1, 1000), 0.3)
        >>> y = DynamicBinarization()(x, generator=torch.Generator().manual_seed(0))
        >>> y.unique(), round(y.mean().item(), 1)
        (tensor([0., 1.]), 0.3)
    """

    @property
    def random(self) -> bool:
        """Yes."""
        return True

    def check(self, x: Tensor) -> None:
        """Refuse data outside [0, 1]."""
        check_unit_interval(x, "DynamicBinarization")

    def apply(
        self, x: Float[Tensor, "num_data *datum"], *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "num_data *datum"]:
        """A fresh draw."""
        # Uniform draws rather than torch.bernoulli, which aborts the device on a value above 1.
        noise = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        return (noise < x).to(x.dtype)

"""Transforms between densities: dequantisation, standardisation, logit."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_models.arrays import ArrayLike
from pyro_models.data.arrays import as_tensor
from pyro_models.data.transforms import DensityTransform, check_floats, check_unit_interval
from pyro_models.errors import DataError, OptionError, SupportError

MAX_LEVELS = 65536  # as many as 16 bits tell apart


@dataclass(frozen=True)
class Dequantization(DensityTransform):
    r"""Spread each level of grey evenly over its cell, so that a density can be fitted.

    .. math:: y = (k + u) / L, \qquad k = (L - 1) x \in \{0, ..., L - 1\}, \qquad u \sim U(0, 1)

    with :math:`L` levels. A density :math:`p_Y` bounds the probability of the levels, for a datum
    of :math:`D` values, by Jensen's inequality:

    .. math:: \log P(k) \geq \mathrm{E}_u[\log p_Y(y)] - D \log L

    Args:
        levels: :math:`L`, 256 for pictures of 8 bits, 17 for ``digits()``.

    Raises:
        OptionError: If ``levels`` is not between 2 and 65536.

    References:
        Theis, van den Oord and Bethge (2016), A note on the evaluation of generative models,
        https://arxiv.org/abs/1511.01844

    Example:
        >>> transform = Dequantization(levels=3)
        >>> y = transform(torch.tensor([[0.0, 0.5, 1.0]]))
        >>> (3 * y).floor()
        tensor([[0., 1., 2.]])
        >>> transform.inverse(y)
        tensor([[0.0000, 0.5000, 1.0000]])
    """

    levels: int = 256

    def __post_init__(self) -> None:
        if isinstance(self.levels, bool) or not isinstance(self.levels, int):
            raise OptionError(f"levels={self.levels!r} is no whole number; give, say, 256")
        if not 2 <= self.levels <= MAX_LEVELS:
            raise OptionError(f"levels={self.levels} lies outside 2 to {MAX_LEVELS}")

    @property
    def random(self) -> bool:
        """Yes: the place within the cell is drawn anew."""
        return True

    def check(self, x: Tensor) -> None:
        """Refuse data off the grid 0, 1/(L-1), ..., 1."""
        check_unit_interval(x, "Dequantization")
        if self.levels * torch.finfo(x.dtype).eps > 0.01:
            raise DataError(f"{x.dtype} is too coarse for {self.levels} levels; give x.float()")
        steps = x * (self.levels - 1)
        off = (steps - steps.round()).abs() > 0.05
        if bool(off.any()):
            first = x[off][0].item()
            raise SupportError(
                f"{int(off.sum())} values of x, the first {first:g}, are none of the "
                f"{self.levels} levels 0, 1/{self.levels - 1}, ..., 1; give levels= as many as x "
                "has, or leave out Dequantization if x is continuous"
            )

    def apply(
        self, x: Float[Tensor, "num_data *datum"], *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "num_data *datum"]:
        """The levels, each with fresh noise within its cell."""
        level = (x * (self.levels - 1)).round()
        noise = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        y = (level + noise) / self.levels
        # Rounding may carry y over the edge of its cell: two rounding errors keep it inside.
        margin = 2 * torch.finfo(x.dtype).eps
        low, high = level / self.levels * (1 + margin), (level + 1) / self.levels * (1 - margin)
        return torch.minimum(torch.maximum(y, low), high)

    def inverse(self, y: Float[Tensor, "num_data *datum"]) -> Float[Tensor, "num_data *datum"]:
        """The level whose cell holds ``y``; beyond [0, 1] the nearest one."""
        level = (y * self.levels).floor().clamp(0, self.levels - 1)
        return level / (self.levels - 1)

    def log_abs_det_jacobian(
        self, x: Float[Tensor, "num_data *datum"], y: Float[Tensor, "num_data *datum"]
    ) -> Float[Tensor, " num_data"]:
        r""":math:`-D \log L`: from a density of ``y`` to a probability of the levels."""
        return y.new_full((len(y),), -math.prod(y.shape[1:]) * math.log(self.levels))


@dataclass(frozen=True, eq=False, repr=False)
class Standardization(DensityTransform):
    r"""Mean zero and standard deviation one, column by column: :math:`y = (x - \mu) / \sigma`.

    ``Standardization.fit(x)`` takes :math:`\mu` and :math:`\sigma` from data (of the training
    part, say) and leaves a column that never varies at zero, with :math:`\sigma = 1`. Keep the
    statistics on the device of the minibatches, else each call copies them there.

    Args:
        mean: :math:`\mu`, of the shape of a datum, or of one that spreads to it.
        scale: :math:`\sigma > 0`, of the shape of ``mean``.

    Raises:
        OptionError: If ``mean`` and ``scale`` are not finite, or ``scale`` not above zero.

    Example:
        >>> x = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
        >>> transform = Standardization.fit(x)
        >>> transform(x)
        tensor([[-1.,  0.],
                [ 1.,  0.]])
        >>> transform.inverse(transform(x))
        tensor([[1., 5.],
                [3., 5.]])
    """

    mean: Float[Tensor, "..."]
    scale: Float[Tensor, "..."]

    def __post_init__(self) -> None:
        if self.mean.shape != self.scale.shape:
            raise OptionError(
                f"mean has shape {tuple(self.mean.shape)} and scale {tuple(self.scale.shape)}; "
                "give both the shape of a datum"
            )
        if not bool(torch.isfinite(self.mean).all() & torch.isfinite(self.scale).all()):
            raise OptionError("mean and scale must be finite; Standardization.fit(x) finds them")
        if not bool((self.scale > 0).all()):
            raise OptionError("scale must be above zero; Standardization.fit(x) sees to that")

    def __repr__(self) -> str:
        return f"Standardization(shape={tuple(self.mean.shape)})"

    @classmethod
    def fit(cls, x: ArrayLike) -> "Standardization":
        """Take mean and standard deviation (over N, not N - 1) from data ``(N, ...)``.

        Args:
            x: Data; see :func:`as_tensor`.

        Raises:
            DataError: If the data is empty, not numeric, not finite, or too large to be summed.

        Example:
            >>> Standardization.fit([[0.0], [4.0]]).scale
            tensor([2.])
        """
        x = as_tensor(x)
        # Two passes about the first datum: exact for constant columns, sound for large offsets.
        # Squares are taken of numbers up to one, so that none overflows or vanishes.
        mean = x[0] + (x - x[0]).mean(0)
        reach = (x - mean).abs().amax(0)
        constant = reach < torch.finfo(x.dtype).tiny
        reach = torch.where(constant, torch.ones_like(reach), reach)
        scale = reach * ((x - mean) / reach).square().mean(0).sqrt()
        scale = torch.where(constant, torch.ones_like(scale), scale)
        if not bool(torch.isfinite(mean).all() & torch.isfinite(scale).all()):
            raise DataError(f"x spans more than {x.dtype} can hold; give x.double()")
        return cls(mean, scale)

    @property
    def random(self) -> bool:
        """No."""
        return False

    def check(self, x: Tensor) -> None:
        """Refuse data of another shape."""
        check_floats(x, "Standardization")
        own, datum = tuple(self.mean.shape), tuple(x.shape[1:])
        fits = len(own) <= len(datum) and all(
            size in (1, wanted)
            for size, wanted in zip(reversed(own), reversed(datum), strict=False)
        )
        if not fits:
            raise DataError(
                f"Standardization was made for data of shape (N, {', '.join(map(str, own))}) and "
                f"was given {tuple(x.shape)}; fit it to data of that shape"
            )

    def apply(
        self, x: Float[Tensor, "num_data *datum"], *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "num_data *datum"]:
        """The standardised data."""
        return (x - self.mean.to(x)) / self.scale.to(x)

    def inverse(self, y: Float[Tensor, "num_data *datum"]) -> Float[Tensor, "num_data *datum"]:
        """The data in its own units."""
        return y * self.scale.to(y) + self.mean.to(y)

    def log_abs_det_jacobian(
        self, x: Float[Tensor, "num_data *datum"], y: Float[Tensor, "num_data *datum"]
    ) -> Float[Tensor, " num_data"]:
        r""":math:`-\sum_d \log \sigma_d`, the same for every datum."""
        return -self.scale.to(y).log().expand(y.shape[1:]).sum().expand(len(y))


@dataclass(frozen=True)
class LogitTransform(DensityTransform):
    r"""From the unit interval to the real line.

    .. math:: y = \log s - \log(1 - s), \qquad s = \alpha + (1 - 2 \alpha) x

    Args:
        alpha: :math:`\alpha` in [0, 0.5), which keeps 0 and 1 away from infinity.

    Raises:
        OptionError: If ``alpha`` lies outside [0, 0.5).

    References:
        Dinh, Sohl-Dickstein and Bengio (2017), Density estimation using real NVP,
        https://arxiv.org/abs/1605.08803

    Example:
        >>> transform = LogitTransform(alpha=0.05)
        >>> y = transform(torch.tensor([[0.0, 0.5, 1.0]]))
        >>> y
        tensor([[-2.9444,  0.0000,  2.9444]])
    """

    alpha: float = 1e-6

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < 0.5:
            raise OptionError(f"alpha={self.alpha} lies outside [0, 0.5); give, say, 1e-6")

    @property
    def random(self) -> bool:
        """No."""
        return False

    def check(self, x: Tensor) -> None:
        """Refuse data outside [0, 1], and with ``alpha=0`` also 0 and 1 themselves."""
        check_unit_interval(x, "LogitTransform")
        if self.alpha == 0 and bool(((x == 0) | (x == 1)).any()):
            raise SupportError("x holds 0 or 1, whose logit is infinite; give alpha above 0")

    def apply(
        self, x: Float[Tensor, "num_data *datum"], *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "num_data *datum"]:
        """The logits."""
        # 1 - s is formed from 1 - x, since s itself rounds to 1 where x is near 1.
        slope = 1 - 2 * self.alpha
        return (self.alpha + slope * x).log() - (self.alpha + slope * (1 - x)).log()

    def inverse(self, y: Float[Tensor, "num_data *datum"]) -> Float[Tensor, "num_data *datum"]:
        """The data in [0, 1]; logits that no datum has go beyond it, by less than 2 alpha."""
        return (y.sigmoid() - self.alpha) / (1 - 2 * self.alpha)

    def log_abs_det_jacobian(
        self, x: Float[Tensor, "num_data *datum"], y: Float[Tensor, "num_data *datum"]
    ) -> Float[Tensor, " num_data"]:
        r""":math:`\sum_d \log(1 - 2 \alpha) - \log s_d - \log(1 - s_d)`."""
        per_value = math.log1p(-2 * self.alpha) - logsigmoid(y) - logsigmoid(-y)
        return per_value.flatten(1).sum(1)

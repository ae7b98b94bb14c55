"""The multivariate normal by a triangular factor of its precision: densities without a solve."""

import math
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

# Up to here a product with each datum's matrix is written out, so that a compiler can fuse it with
# all around it.
_WRITTEN_OUT = 4


@final
class PrecisionNormal(TorchDistribution):
    r"""A normal distribution given by what turns it into white noise.

    .. math::
        W (x - \mu) \sim \mathcal N(0, I), \qquad \Sigma^{-1} = W^\top W, \qquad
        \log p(x) = \sum_d \log W_{dd} - \tfrac12 \lVert W (x - \mu) \rVert^2
                    - \tfrac D2 \log 2\pi

    ``torch.distributions.MultivariateNormal`` holds a factor of the covariance and solves a
    triangular system for every density; here it is a product.

    Args:
        loc: :math:`\mu`, ``(..., D)``.
        factor: W, lower triangular with a positive diagonal, ``(..., D, D)``. It may have fewer
            batch dimensions than ``loc``, or some of size 1, and is never expanded to it.

    Example:
        >>> p = PrecisionNormal(torch.zeros(2), torch.tensor([[0.5, 0.0], [0.0, 1.0]]))
        >>> p.log_prob(torch.tensor([[0.0, 0.0], [2.0, 0.0]]))
        tensor([-2.5310, -3.0310])
        >>> p.covariance_matrix
        tensor([[4., 0.],
                [0., 1.]])
    """

    arg_constraints: ClassVar = {
        "loc": constraints.real_vector,
        "factor": constraints.lower_cholesky,
    }
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        loc: Float[Tensor, "*batch dim"],
        factor: Float[Tensor, "*factors dim dim"],
        validate_args: bool | None = None,
    ) -> None:
        self.loc = loc
        self.factor = factor
        batch_shape = torch.broadcast_shapes(loc.shape[:-1], factor.shape[:-2])
        super().__init__(batch_shape, loc.shape[-1:], validate_args=validate_args)

    def expand(
        self, batch_shape: Any, _instance: "PrecisionNormal | None" = None
    ) -> "PrecisionNormal":
        """The same distribution with another batch shape; its factor stays as small as it is."""
        batch_shape = torch.Size(batch_shape)
        loc = self.loc.expand(*batch_shape, -1)
        return PrecisionNormal(loc, self.factor, validate_args=False)

    def log_prob(self, value: Float[Tensor, "*value dim"]) -> Float[Tensor, "..."]:
        """Log-density in nats at ``value``, which broadcasts against the batch shape."""
        if self._validate_args:
            self._validate_sample(value)
        white = self._whiten(value - self.loc)
        log_det = self.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        constant = 0.5 * math.log(2 * math.pi) * self.event_shape[0]
        return log_det - 0.5 * white.square().sum(-1) - constant

    def _whiten(self, difference: Float[Tensor, "*lead dim"]) -> Float[Tensor, "*out dim"]:
        """The products W (x - μ), without a copy of W for each datum."""
        factor = self.factor
        if self.event_shape[0] <= _WRITTEN_OUT:
            return (factor * difference.unsqueeze(-2)).sum(-1)
        if factor.ndim == 2:
            return difference @ factor.mT
        if factor.shape[-3] == 1 and difference.ndim >= 2:
            return difference @ factor.squeeze(-3).mT  # one product for all data
        return (factor @ difference.unsqueeze(-1)).squeeze(-1)

    def rsample(self, sample_shape: Any = ()) -> Float[Tensor, "*out dim"]:
        """Draw; gradients flow to both parameters."""
        shape = self._extended_shape(sample_shape)
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        solved = torch.linalg.solve_triangular(self.factor, noise.unsqueeze(-1), upper=False)
        return self.loc + solved.squeeze(-1)

    def _inverse(self) -> Float[Tensor, "*factors dim dim"]:
        """The Cholesky factor of the covariance, for W is triangular."""
        eye = torch.eye(self.event_shape[0], dtype=self.factor.dtype, device=self.factor.device)
        return torch.linalg.solve_triangular(self.factor, eye, upper=False)

    @property
    def mean(self) -> Float[Tensor, "*batch dim"]:
        """μ."""
        return self.loc.expand(*self.batch_shape, -1)

    @property
    def mode(self) -> Float[Tensor, "*batch dim"]:
        """μ."""
        return self.mean

    @property
    def scale_tril(self) -> Float[Tensor, "*batch dim dim"]:
        """The Cholesky factor of the covariance, :math:`W^{-1}`."""
        return self._inverse().expand(*self.batch_shape, -1, -1)

    @property
    def covariance_matrix(self) -> Float[Tensor, "*batch dim dim"]:
        """Σ."""
        inverse = self._inverse()
        return (inverse @ inverse.mT).expand(*self.batch_shape, -1, -1)

    @property
    def precision_matrix(self) -> Float[Tensor, "*batch dim dim"]:
        """The inverse of Σ."""
        return (self.factor.mT @ self.factor).expand(*self.batch_shape, -1, -1)

    @property
    def variance(self) -> Float[Tensor, "*batch dim"]:
        """The diagonal of Σ."""
        return self._inverse().square().sum(-1).expand(*self.batch_shape, -1)

    def entropy(self) -> Float[Tensor, "*batch"]:
        """In nats."""
        log_det = self.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        constant = 0.5 * (1 + math.log(2 * math.pi)) * self.event_shape[0]
        return (constant - log_det).expand(self.batch_shape)

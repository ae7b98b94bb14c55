"""A joint normal posterior of a model's global latents."""

from collections.abc import Callable, Mapping
from typing import Any, final

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn

from guides.factors import raw_scale
from guides.global_latents import Local, chosen, latents_of, run_local
from pyro_models.networks import bounded_softplus
from pyro_models.options import positive_float
from pyro_models.programs import announce

AUXILIARY = "_global"
"""Name of the auxiliary site with the real numbers that stand for all latents."""


@final
class FullRank(nn.Module):
    r"""One normal, with all correlations, of the real numbers that stand for all global latents.

    .. math:: \theta_i = T_i(\eta_i), \qquad
              \eta = (\eta_1, \eta_2, \dots) \sim \mathcal N(m, L L^\top)

    where :math:`T_i` is torch's transform of the real numbers onto the support of the i-th latent.
    :math:`\eta` is drawn at the auxiliary site ``"_global"``, as Pyro's ``AutoMultivariateNormal``
    does; the latents' sites follow from it. Parameters exist from the start, on the module; the
    model itself is not kept.

    Args:
        model: A Pyro program; latents outside its plate ``"data"`` are found by running it.
        args: What to run it with; the models here simulate when given nothing.
        scale: Standard deviations at the start.
        local: A guide for the latents inside the data plate, called as ``local(values, *args,
            **kwargs)`` with the drawn values by name.

    Raises:
        OptionError: If the model has no such latents, or ``scale`` is not above 0.

    References:
        Kucukelbir et al. 2017, "Automatic Differentiation Variational Inference",
        https://arxiv.org/abs/1603.00788

    Example:
        >>> def model(x=None):
        ...     rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        ...     shape = pyro.sample("shape", dist.Gamma(2.0, 1.0))
        ...     with pyro.plate("data", 1 if x is None else len(x)):
        ...         return pyro.sample("x", dist.Gamma(shape, rate), obs=x)
        >>> FullRank(model).covariance.shape
        torch.Size([2, 2])
    """

    def __init__(
        self,
        model: Callable[..., Any],
        args: tuple[Any, ...] = (),
        scale: float = 0.1,
        local: Local | None = None,
    ) -> None:
        super().__init__()
        self._start = raw_scale(positive_float("scale", scale))
        self.latents = latents_of(model, args)
        self.loc = nn.Parameter(torch.cat([each.start.flatten() for each in self.latents.values()]))
        self.raw_scale = nn.Parameter(torch.full_like(self.loc, self._start))
        self.raw_tril = nn.Parameter(self.loc.new_zeros(len(self.loc), len(self.loc)))
        self.local = local

    @property
    def scale_tril(self) -> Float[Tensor, "dim dim"]:
        """L, of correlations scaled by the standard deviations: its rows are s_i (..., 1, 0)."""
        scale = bounded_softplus(self.raw_scale)
        eye = torch.eye(len(scale), dtype=scale.dtype, device=scale.device)
        return scale.unsqueeze(-1) * (self.raw_tril.tril(-1) + eye)

    @property
    def covariance(self) -> Float[Tensor, "dim dim"]:
        """L L', of the real numbers."""
        return self.scale_tril @ self.scale_tril.mT

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The Pyro program: draw all latents together.

        Args:
            *args: What the model is called with; only ``local`` looks at it.
            **kwargs: Likewise.

        Returns:
            The values by name.
        """
        announce(self, "guide")
        normal = dist.MultivariateNormal(self.loc, scale_tril=self.scale_tril)
        everything = pyro.sample(AUXILIARY, normal, infer={"is_auxiliary": True})
        values = {}
        for name, latent, real in self._parts(everything):
            value = latent.transform(real)
            density = -latent.log_density_change(real, value)
            with latent.in_plates():
                point = dist.Delta(value, log_density=density, event_dim=latent.event_dim)
                values[name] = pyro.sample(name, point)
        run_local(self.local, values, args, kwargs)
        return values

    def _parts(self, everything: Float[Tensor, "*lead dim"]) -> list[tuple[str, Any, Tensor]]:
        """Name, latent and its real numbers, cut out of all."""
        sizes = [latent.unconstrained_shape.numel() for latent in self.latents.values()]
        pieces = everything.split(sizes, dim=-1)
        found = []
        for (name, latent), piece in zip(self.latents.items(), pieces, strict=True):
            # A leading dimension stands left of the plates: (K, 1, dim) is (K, 1, *shape).
            lead = everything.shape[:-1]
            batch = len(latent.unconstrained_shape) - latent.real_event_dim
            lead = lead[: len(lead) - batch] if batch else lead
            found.append((name, latent, piece.reshape((*lead, *latent.unconstrained_shape))))
        return found

    @torch.no_grad()
    def center(self) -> dict[str, Tensor]:
        """Where the middle of the normal lies, by latent: the median of each."""
        return {name: latent.transform(real) for name, latent, real in self._parts(self.loc)}

    @torch.no_grad()
    def initialize(self, values: Mapping[str, Tensor]) -> None:
        """Put the middle of q at given values, with the width of the start, without correlations.

        Args:
            values: Values by latent, in their support; the middle of the others stays.

        Raises:
            OptionError: If a name is of no latent.
            DataError: If a value has another shape than the model's, or is outside its support.
        """
        reals = chosen(self.latents, values)
        for name, _, real in self._parts(self.loc.data):  # parts are views
            if name in reals:
                real.copy_(reals[name])
        self.raw_scale.fill_(self._start)
        self.raw_tril.zero_()

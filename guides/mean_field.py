"""Independent posteriors of a model's global latents."""

from collections.abc import Callable, Mapping
from typing import Any, final

import pyro
import torch
from torch import Tensor, nn

from guides.factors import Factor, FactorModule, NormalFactor
from guides.global_latents import Local, chosen, latents_of, run_local
from pyro_models.errors import OptionError
from pyro_models.programs import announce


@final
class MeanField(nn.Module):
    r"""Independent posteriors of the latents outside the data plate.

    .. math:: q(\theta) = \prod_i q_i(\theta_i), \qquad
              \theta_i = T_i(\eta_i), \quad \eta_i \sim \mathcal N(m_i, \mathrm{diag}(s_i^2))

    where :math:`T_i` is torch's transform of the real numbers onto the support of the i-th latent,
    unless ``factors`` names another family for it. Parameters exist from the start, on the module:
    one run of the model shows which latents there are. The model itself is not kept.

    Args:
        model: A Pyro program; latents outside its plate ``"data"`` are found by running it.
        args: What to run it with; the models here simulate when given nothing.
        factors: Families by latent, such as ``{"v": guides.KumaraswamyFactor()}``; ``NormalFactor``
            for the rest.
        local: A guide for the latents inside the data plate, called as ``local(values, *args,
            **kwargs)`` with the drawn values by name. Discrete latents that are summed out need
            none.

    Raises:
        OptionError: If the model has no such latents, or a family does not fit.

    References:
        Kucukelbir et al. 2017, "Automatic Differentiation Variational Inference",
        https://arxiv.org/abs/1603.00788

    Example:
        >>> import pyro.distributions as dist
        >>> def model(x=None):
        ...     rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        ...     with pyro.plate("data", 1 if x is None else len(x)):
        ...         return pyro.sample("x", dist.Poisson(rate), obs=x)
        >>> guide = MeanField(model)
        >>> guide.initialize({"rate": torch.tensor(3.0)})
        >>> round(guide.center()["rate"].item(), 4)
        3.0
        >>> sorted(guide())
        ['rate']
    """

    def __init__(
        self,
        model: Callable[..., Any],
        args: tuple[Any, ...] = (),
        factors: Mapping[str, Factor] | None = None,
        local: Local | None = None,
    ) -> None:
        super().__init__()
        self.latents = latents_of(model, args)
        self.factors = nn.ModuleDict()
        families = {} if factors is None else dict(factors)
        for name in families:
            if name not in self.latents:
                raise OptionError(f"{name!r} is no latent of the model; it has {[*self.latents]}")
        for name, latent in self.latents.items():
            family = families.get(name, NormalFactor())
            if not isinstance(family, Factor):
                raise OptionError(
                    f"factors[{name!r}] is {family!r}; give one such as guides.NormalFactor()"
                )
            self.factors[name] = family.module(latent)
        self.local = local

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The Pyro program: draw each latent.

        Args:
            *args: What the model is called with; only ``local`` looks at it.
            **kwargs: Likewise.

        Returns:
            The values by name.
        """
        announce(self, "guide")
        values = {}
        for name, latent in self.latents.items():
            with latent.in_plates():
                values[name] = pyro.sample(name, self._factor(name)())
        run_local(self.local, values, args, kwargs)
        return values

    def _factor(self, name: str) -> FactorModule:
        factor = self.factors[name]
        if not isinstance(factor, FactorModule):
            raise OptionError(f"{name!r} has a {type(factor).__name__} in the place of its factor")
        return factor

    @torch.no_grad()
    def center(self) -> dict[str, Tensor]:
        """A value in the middle of q for each latent: its median, or the mean of a fraction."""
        return {name: self._factor(name).center() for name in self.latents}

    @torch.no_grad()
    def initialize(self, values: Mapping[str, Tensor]) -> None:
        """Put the middle of q at given values, with the width of the start.

        Args:
            values: Values by latent, in their support; the others stay as they are.

        Raises:
            OptionError: If a name is of no latent.
            DataError: If a value has another shape than the model's, or is outside its support.
        """
        for name, real in chosen(self.latents, values).items():
            self._factor(name).move(real)

"""The single most probable value of a model's global latents."""

from collections.abc import Callable, Mapping
from typing import Any, final

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from guides.global_latents import Local, chosen, latents_of, run_local
from pyro_models.programs import announce


@final
class Point(nn.Module):
    r"""A point mass at one value of the latents outside the data plate.

    .. math:: q(\theta) = \delta(\theta - \hat\theta), \qquad
              \hat\theta = \operatorname*{argmax}_\theta\, \log p(x, \theta)

    With it the ELBO is the log joint density, whose maximum is the maximum a posteriori estimate,
    of the density over the latents as the model has them: the transform onto the support changes
    where steps go, not where they end. Parameters exist from the start, on the module; the model
    itself is not kept.

    Args:
        model: A Pyro program; latents outside its plate ``"data"`` are found by running it.
        args: What to run it with; the models here simulate when given nothing.
        local: A guide for the latents inside the data plate, called as ``local(values, *args,
            **kwargs)`` with the values by name.

    Raises:
        OptionError: If the model has no such latents.

    Example:
        >>> def model(x=None):
        ...     rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        ...     with pyro.plate("data", 1 if x is None else len(x)):
        ...         return pyro.sample("x", dist.Poisson(rate), obs=x)
        >>> guide = Point(model)
        >>> guide.initialize({"rate": torch.tensor(3.0)})
        >>> {name: round(value.item(), 4) for name, value in guide().items()}
        {'rate': 3.0}
    """

    def __init__(
        self, model: Callable[..., Any], args: tuple[Any, ...] = (), local: Local | None = None
    ) -> None:
        super().__init__()
        self.latents = latents_of(model, args)
        self.locs = nn.ParameterDict(
            {name: nn.Parameter(latent.start.clone()) for name, latent in self.latents.items()}
        )
        self.local = local

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The Pyro program: put each latent where its parameters say.

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
                value = latent.transform(self.locs[name])
                values[name] = pyro.sample(name, dist.Delta(value, event_dim=latent.event_dim))
        run_local(self.local, values, args, kwargs)
        return values

    @torch.no_grad()
    def center(self) -> dict[str, Tensor]:
        """The values by name."""
        return {n: latent.transform(self.locs[n]) for n, latent in self.latents.items()}

    @torch.no_grad()
    def initialize(self, values: Mapping[str, Tensor]) -> None:
        """Put latents at given values.

        Args:
            values: Values by latent, in their support; the others stay as they are.

        Raises:
            OptionError: If a name is of no latent.
            DataError: If a value has another shape than the model's, or is outside its support.
        """
        for name, real in chosen(self.latents, values).items():
            self.locs[name].copy_(real)

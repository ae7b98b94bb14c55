"""The posterior that a model holds of its own parameters, as a guide."""

from collections.abc import Callable
from typing import Any, Protocol, final, runtime_checkable

from jaxtyping import Shaped
from pyro import poutine
from torch import Tensor, nn

from guides.responsibilities import ConditionalResponsibilities
from pyro_models.errors import OptionError
from pyro_models.programs import announce


@runtime_checkable
class HasBelief(Protocol):
    """A model whose E- and M-steps raise the bound of a posterior of its own over parameters."""

    def draw_belief(self) -> None:
        """The Pyro program of that posterior."""


@final
class Belief(nn.Module):
    r"""The q of coordinate ascent in closed form, which the model holds, as a Pyro program.

    .. math:: q(\theta)\, \prod_n p(k_n \mid x_n, \theta)

    with :math:`q(\theta)` what ``infer.em`` has made of the model's belief about the latents that
    all data share. The component is drawn from its exact posterior given them, which is no worse
    than coordinate ascent's own. It has no parameters: fit the model by ``infer.em``, and give it
    this guide for what comes after. The model is held without being a submodule.

    Args:
        model: A model with ``draw_belief()``, such as ``DirichletProcessMixture``.
        local: A guide for each datum's own latents, ``local(values, x, num_data)``;
            ``ConditionalResponsibilities(model)`` if not given.

    Raises:
        OptionError: If the model holds no belief.

    References:
        Blei and Jordan 2006, https://doi.org/10.1214/06-BA104

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> class Coin(nn.Module):
        ...     def draw_belief(self):
        ...         pyro.sample("bias", dist.Beta(3.0, 2.0))
        >>> guide = Belief(Coin(), local=lambda values, x, num_data: None)
        >>> guide(torch.zeros(3))
        >>> pyro.poutine.trace(guide).get_trace().nodes["bias"]["fn"].mean
        tensor(0.6000)
    """

    def __init__(self, model: HasBelief, local: Callable[..., Any] | None = None) -> None:
        super().__init__()
        if not isinstance(model, HasBelief):
            raise OptionError(
                f"{type(model).__name__} has no draw_belief() to be the guide; give a model such "
                "as DirichletProcessMixture, or take guides.MeanField(model)"
            )
        self._held = (model,)  # in a tuple, so that it does not become a submodule
        self.local = ConditionalResponsibilities(model) if local is None else local  # type: ignore[arg-type]

    def forward(
        self, x: Shaped[Tensor, "batch *datum"] | None = None, num_data: int | None = None
    ) -> None:
        """The Pyro program: draw what all data share, then each datum's own latents.

        Args:
            x: A minibatch, ``(batch, data_dim)`` or images.
            num_data: Size N of the whole set, by which a minibatch is scaled.
        """
        announce(self, "guide")
        with poutine.trace() as found:
            self._held[0].draw_belief()
        sites: Any = found.trace.nodes.values()
        values = {site["name"]: site["value"] for site in sites if site["type"] == "sample"}
        self.local(values, x, num_data)

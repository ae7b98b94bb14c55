"""The mixture's inference side: the exact posterior of the component."""

from collections.abc import Mapping
from typing import Protocol, final, runtime_checkable

import pyro
import pyro.distributions as dist
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from pyro_models.errors import DataError, OptionError
from pyro_models.networks import as_batch, first_parameter
from pyro_models.programs import announce, data_plate


@runtime_checkable
class ComponentModel(Protocol):
    """A model with a discrete latent ``"component"`` that can be summed over."""

    data_dim: int

    def log_joint(
        self, x: Shaped[Tensor, "num_data *datum"]
    ) -> Float[Tensor, "num_data components"]:
        """log p(x_n, component), ``(N, K)``, differentiable."""


@final
class Responsibilities(nn.Module):
    r"""The exact posterior of the component, by Bayes' rule from the model's own parameters.

    .. math:: q(k \mid x_n) = \frac{p(x_n, k)}{\sum_j p(x_n, j)}

    With it the ELBO is log p(x) whatever is drawn. Site: ``"component"`` in the plate ``"data"``;
    ``pyro.infer.config_enumerate(guide)`` marks it for stock ``TraceEnum_ELBO``. The model is
    held without being a submodule: its parameters are the model's alone, shown and saved once.

    Args:
        model: A model with ``log_joint(x)`` and ``data_dim``, such as ``GaussianMixture``.

    Raises:
        OptionError: If the model has neither.

    References:
        Neal and Hinton 1998, https://doi.org/10.1007/978-94-011-5014-9_12

    Example:
        >>> import torch
        >>> class Coin(nn.Module):
        ...     data_dim = 1
        ...     def log_joint(self, x):
        ...         return torch.cat([x, -x], dim=-1)
        >>> guide = Responsibilities(Coin())
        >>> guide.posterior(torch.zeros(3, 1)).probs
        tensor([[0.5000, 0.5000],
                [0.5000, 0.5000],
                [0.5000, 0.5000]])
        >>> len(guide.state_dict())
        0
    """

    def __init__(self, model: ComponentModel) -> None:
        super().__init__()
        if not (isinstance(model, nn.Module) and hasattr(model, "log_joint")):
            raise OptionError(
                f"{type(model).__name__} has no log_joint(x) to take a posterior of; give a model "
                "such as GaussianMixture"
            )
        self._held = (model,)  # in a tuple, so that it does not become a submodule

    @property
    def model(self) -> nn.Module:
        """The model whose posterior it is."""
        return self._held[0]

    def forward(
        self, x: Shaped[Tensor, "batch *datum"] | None = None, num_data: int | None = None
    ) -> Int[Tensor, "..."]:
        """The Pyro program: draw a component for each datum.

        Args:
            x: A minibatch, ``(batch, data_dim)`` or images.
            num_data: Size N of the whole set, by which a minibatch is scaled.

        Returns:
            The components, ``(batch,)``.

        Raises:
            DataError: If there is no ``x``, or its shape, type or device do not fit.
        """
        announce(self, "guide")
        if x is None:
            raise DataError("the guide infers components from data and got none; give x")
        rows = as_batch(x, self._held[0].data_dim, first_parameter(self.model))
        with data_plate(len(rows), num_data, rows.device):
            q = self.posterior(rows)
            return pyro.sample("component", q)

    def posterior(self, x: Float[Tensor, "num_data data_dim"]) -> dist.Categorical:
        """The distribution q(component | x), of batch shape ``(N,)``.

        Args:
            x: Data, ``(N, data_dim)``, in the parameters' type.
        """
        return dist.Categorical(logits=self._held[0].log_joint(x))


@runtime_checkable
class SharedComponentModel(Protocol):
    """A model with a discrete latent ``"component"`` and latents that all data share."""

    data_dim: int

    def conditional(
        self, values: Mapping[str, Tensor], x: Shaped[Tensor, "num_data *datum"]
    ) -> Float[Tensor, "*lead num_data components"]:
        """log p(x_n, component) given the latents that all data share."""


@final
class ConditionalResponsibilities(nn.Module):
    r"""The exact posterior of the component given the latents that all data share.

    .. math:: q(k \mid x_n, \theta) = \frac{p(x_n, k \mid \theta)}{\sum_j p(x_n, j \mid \theta)}

    It is the ``local`` part of a guide for those latents, such as ``guides.MeanField(model,
    local=ConditionalResponsibilities(model))``, which gives it their draws :math:`\theta`. Site:
    ``"component"`` in the plate ``"data"``. The model is held without being a submodule.

    Args:
        model: A model with ``conditional(values, x)`` and ``data_dim``, such as
            ``DirichletProcessMixture``.

    Raises:
        OptionError: If the model has neither.

    Example:
        >>> import torch
        >>> class Coin(nn.Module):
        ...     data_dim = 1
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.scale = nn.Parameter(torch.ones(()))
        ...     def conditional(self, values, x):
        ...         return self.scale * torch.cat([x, values["bias"] - x], dim=-1)
        >>> guide = ConditionalResponsibilities(Coin())
        >>> guide({"bias": torch.tensor(0.0)}, torch.zeros(3, 1)).shape
        torch.Size([3])
    """

    def __init__(self, model: SharedComponentModel) -> None:
        super().__init__()
        if not (isinstance(model, nn.Module) and hasattr(model, "conditional")):
            raise OptionError(
                f"{type(model).__name__} has no conditional(values, x) to take a posterior of; "
                "give a model such as DirichletProcessMixture"
            )
        self._held = (model,)

    @property
    def model(self) -> nn.Module:
        """The model whose posterior it is."""
        return self._held[0]

    def forward(
        self,
        values: Mapping[str, Tensor],
        x: Shaped[Tensor, "batch *datum"] | None = None,
        num_data: int | None = None,
    ) -> Int[Tensor, "..."]:
        """The Pyro program: draw a component for each datum.

        Args:
            values: The latents that all data share, by site.
            x: A minibatch, ``(batch, data_dim)`` or images.
            num_data: Size N of the whole set, by which a minibatch is scaled.

        Raises:
            DataError: If there is no ``x``, or its shape, type or device do not fit.
        """
        if x is None:
            raise DataError("the guide infers components from data and got none; give x")
        rows = as_batch(x, self._held[0].data_dim, first_parameter(self.model))
        with data_plate(len(rows), num_data, rows.device):
            logits = self._held[0].conditional(values, rows)
            return pyro.sample("component", dist.Categorical(logits=logits))

"""The inference side of variational autoencoders with a mixture as prior."""

from collections.abc import Callable, Sequence
from typing import Protocol, final, runtime_checkable

import pyro
import torch
from jaxtyping import Float, Int, Shaped
from pyro.distributions import Categorical
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from guides.covariance import Covariance, Diagonal
from pyro_models.errors import DataError, OptionError
from pyro_models.networks import MLP, as_batch, first_parameter
from pyro_models.programs import announce, data_plate


@runtime_checkable
class MixtureModel(Protocol):
    """A model of codes with a component whose posterior given the codes has a closed form."""

    data_dim: int

    @property
    def code_dims(self) -> dict[str, int]:
        """Dimension of each continuous latent, by site, in the order in which they are drawn."""

    @property
    def component_posterior(self) -> Callable[..., Categorical]:
        """p(component | codes), a method that takes the codes by the names of their sites."""


@final
class MixtureCodes(nn.Module):
    r"""Normal posteriors of the codes that a network reads off the datum, and their component.

    .. math::
        q(w, z, k \mid x) = \mathcal N\big(w \mid m_w(x), \Sigma_w(x)\big)\,
        \mathcal N\big(z \mid m_z(x), \Sigma_z(x)\big)\; p(k \mid z, w)

    for ``GaussianMixtureVAE``, and without w for ``VaDE``. One network, the recognition network,
    gives all the means :math:`m` and covariances :math:`\Sigma`; the last factor is the model's own
    posterior of the component k, by Bayes' rule: no other would make the bound higher. Sites: the
    model's codes, in the order of ``model.code_dims``, then ``"component"``, all in the plate
    ``"data"``. The model is held without being a submodule: its parameters are its own alone.

    Args:
        model: A model with ``code_dims``, ``component_posterior(...)`` and ``data_dim``.
        hidden: Widths of the recognition network's hidden layers.
        covariance: ``Diagonal()`` or ``Full()``, of each code's posterior.
        activation: Class of the recognition network's activation.
        preprocess: Module between the data and the network, such as ``networks.Standardize(x)``
            for data of another size than 1; by default the network sees the data as they are.

    Raises:
        OptionError: If an option has no meaning, or the model lacks something.

    References:
        Dilokthanakul et al. 2016, https://arxiv.org/abs/1611.02648
        Jiang, Zheng, Tan, Tang and Zhou 2017, https://arxiv.org/abs/1611.05148

    Example:
        >>> class Coins(nn.Module):
        ...     data_dim = 4
        ...     code_dims = {"z": 2}
        ...     def component_posterior(self, z):
        ...         return Categorical(logits=z)
        >>> guide = MixtureCodes(Coins(), hidden=(8,))
        >>> guide(torch.zeros(5, 4)).shape
        torch.Size([5])
        >>> guide.posterior(torch.zeros(5, 4))["z"].event_shape
        torch.Size([2])
    """

    def __init__(
        self,
        model: MixtureModel,
        hidden: Sequence[int] = (200,),
        covariance: Covariance = Diagonal(),  # noqa: B008 (immutable)
        activation: type[nn.Module] = nn.Tanh,
        preprocess: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if not (
            isinstance(model, nn.Module)
            and hasattr(model, "component_posterior")
            and hasattr(model, "code_dims")
        ):
            raise OptionError(
                f"{type(model).__name__} has no code_dims and component_posterior(...); give a "
                "model such as GaussianMixtureVAE or VaDE"
            )
        if not isinstance(covariance, Covariance):
            raise OptionError(
                f"covariance={covariance!r} is none; give guides.Diagonal() or guides.Full()"
            )
        self._held = (model,)  # in a tuple, so that it does not become a submodule
        self.data_dim = model.data_dim
        self.covariance = covariance
        self.preprocess = nn.Identity() if preprocess is None else preprocess
        self.sizes = tuple(covariance.num_outputs(dim) for dim in model.code_dims.values())
        self.encoder = MLP(self.data_dim, hidden, sum(self.sizes), activation)
        with torch.no_grad():
            # Correlations, if any, start at zero: many random ones would start far from any prior.
            rows = self.encoder.output.weight.split(self.sizes)
            for dim, part in zip(model.code_dims.values(), rows, strict=True):
                part[2 * dim :] = 0

    @property
    def model(self) -> nn.Module:
        """The model whose posterior of the component it takes."""
        return self._held[0]

    def forward(
        self, x: Shaped[Tensor, "batch *datum"] | None = None, num_data: int | None = None
    ) -> Int[Tensor, "..."]:
        """The Pyro program: draw codes and a component for each datum.

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
            raise DataError("the guide infers codes from data and got none; give x")
        rows = as_batch(x, self.data_dim, first_parameter(self))
        with data_plate(len(rows), num_data, rows.device):
            codes = {name: pyro.sample(name, q) for name, q in self.posterior(rows).items()}
            return pyro.sample("component", self._held[0].component_posterior(**codes))

    def outputs_of(self, site: str) -> slice:
        """Which of the recognition network's outputs are those of a code.

        Args:
            site: Name of the code.

        Raises:
            OptionError: If the model has no such code.
        """
        names = list(self._held[0].code_dims)
        if site not in names:
            raise OptionError(f"the model has no code {site!r}; it has {names}")
        first = sum(self.sizes[: names.index(site)])
        return slice(first, first + self.sizes[names.index(site)])

    def posterior(self, x: Float[Tensor, "*lead data_dim"]) -> dict[str, TorchDistributionMixin]:
        """The distributions q(code | x) by site, of batch shape ``(...)``.

        Args:
            x: Data, ``(..., data_dim)``, in the parameters' type.
        """
        parts = self.encoder(self.preprocess(x)).split(self.sizes, -1)
        dims = self._held[0].code_dims
        return {
            name: self.covariance.normal(part, dim)
            for (name, dim), part in zip(dims.items(), parts, strict=True)
        }

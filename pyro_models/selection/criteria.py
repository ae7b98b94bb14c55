"""Information criteria: the log-likelihood, less a charge for each free parameter."""

import math
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from pyro_models.errors import DataError, OptionError
from pyro_models.infer.inspection import as_arguments
from pyro_models.infer.weights import Program


@runtime_checkable
class HasLogProb(Protocol):
    """A model whose log p(x) is known exactly."""

    def log_prob(self, *args: Any) -> Tensor:
        """log p(x_n), ``(N,)``."""


@dataclass(frozen=True)
class InformationCriteria:
    r"""AIC and BIC of a model by its own data.

    With the maximal log-likelihood :math:`\ell`, p free parameters and N data,

    .. math:: \mathrm{AIC} = 2 p - 2 \ell, \qquad \mathrm{BIC} = p \log N - 2 \ell .

    Lower is better; both are totals over the data, as in scikit-learn, and mean something only at
    the maximum of the likelihood.

    Args:
        log_likelihood: The sum of log p(x_n), nats.
        num_free_parameters: p.
        num_data: N.

    References:
        Akaike 1974, https://doi.org/10.1109/TAC.1974.1100705
        Schwarz 1978, https://doi.org/10.1214/aos/1176344136

    Example:
        >>> criteria = InformationCriteria(-100.0, num_free_parameters=5, num_data=50)
        >>> criteria.aic, round(criteria.bic, 2)
        (210.0, 219.56)
    """

    log_likelihood: float
    num_free_parameters: int
    num_data: int

    @property
    def aic(self) -> float:
        """Akaike's criterion; lower is better."""
        return 2 * self.num_free_parameters - 2 * self.log_likelihood

    @property
    def bic(self) -> float:
        """Schwarz's criterion; lower is better."""
        return self.num_free_parameters * math.log(self.num_data) - 2 * self.log_likelihood

    @property
    def mean_log_likelihood(self) -> float:
        """Nats per datum."""
        return self.log_likelihood / self.num_data


def information_criteria(model: Program, x: Any) -> InformationCriteria:
    """AIC and BIC of a fitted model.

    Args:
        model: A model with ``log_prob(x)`` and ``num_free_parameters``.
        x: The data that it was fitted to, ``(N, ...)``, or a tuple of several arguments.

    Raises:
        OptionError: If the model lacks one of the two.
        DataError: If the data are empty or not finite.

    Example:
        >>> import pyro.distributions as dist
        >>> class Line(torch.nn.Module):
        ...     num_free_parameters = 2
        ...     def log_prob(self, x):
        ...         return dist.Normal(0.0, 1.0).log_prob(x)
        >>> information_criteria(Line(), torch.zeros(10)).aic
        22.37877...
    """
    size = getattr(model, "num_free_parameters", None)
    if not isinstance(model, HasLogProb) or size is None:
        raise OptionError(
            f"{type(model).__name__} lacks log_prob(x) or num_free_parameters, by which AIC and "
            "BIC are defined; compare by selection.held_out, or by psis_loo for global latents"
        )
    args = as_arguments(x, model)
    values = exact_log_prob(model, args)
    return InformationCriteria(float(values.sum()), int(size), len(values))


def exact_log_prob(model: HasLogProb, args: tuple[Tensor, ...]) -> Tensor:
    """log p(x_n) as the model gives it, ``(N,)``, float64 on the CPU.

    Args:
        model: The model.
        args: What its ``log_prob`` takes.

    Raises:
        DataError: If there is not one value a datum.
    """
    with torch.no_grad():
        values = model.log_prob(*args)
    if values.shape != (len(args[0]),):
        raise DataError(
            f"log_prob gave shape {tuple(values.shape)} for {len(args[0])} data; it must give one "
            "number a datum"
        )
    return values.double().cpu()

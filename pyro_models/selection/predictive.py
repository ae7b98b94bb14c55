"""log p(x) of held-out data, and bounds on the evidence of a model with a prior."""

import math
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from pyro_models.errors import OptionError
from pyro_models.infer.inspection import as_arguments
from pyro_models.infer.likelihood import log_likelihood
from pyro_models.infer.weights import Program
from pyro_models.options import positive_int
from pyro_models.selection.criteria import HasLogProb, exact_log_prob
from pyro_models.selection.draws import draw, latents_of, log_mean

MEMORY = 512 * 2**20


@dataclass(frozen=True)
class HeldOut:
    """What a fitted model says of data: log p(x) in nats, float64 on the CPU; higher is better."""

    value: Float[Tensor, " N"]
    """log p(x_n), ``(N,)``."""
    monte_carlo_error: Float[Tensor, " N"]
    """Standard error of each value from the finite number of draws; 0 where log p(x) is exact."""
    effective_sample_size: Float[Tensor, " N"] | None
    """Of the draws behind each value; ``None`` where log p(x) is exact."""
    bound: Float[Tensor, " N"] | None
    r"""With global latents: the mean over draws of :math:`\log p(x_n \mid \theta_s)`, a lower bound
    of ``value``; otherwise ``None``."""
    num_samples: int | None
    """Draws for each value; ``None`` where log p(x) is exact."""

    @property
    def mean(self) -> float:
        """Nats per datum."""
        return float(self.value.mean())

    @property
    def standard_error(self) -> float:
        """Standard error of ``mean`` as an estimate for new data; NaN for one datum."""
        if len(self.value) < 2:
            return math.nan
        return float(self.value.std() / len(self.value) ** 0.5)


def held_out(
    model: Program,
    x: Any,
    guide: Program | None = None,
    *,
    num_samples: int = 1000,
    max_memory: int = MEMORY,
) -> HeldOut:
    r"""log p(x) of each datum under a fitted model: exact where it can be, else by the guide.

    ====================================== ===================================================
    a model with                           log p(x_n)
    ====================================== ===================================================
    ``log_prob(x)``                        that
    latents of each datum's own            importance sampling, see ``infer.log_likelihood``
    latents that all data share            the predictive density of a posterior q,
                                           :math:`\log \frac1S \sum_s p(x_n \mid \theta_s)`,
                                           :math:`\theta_s \sim q(\theta)`
    ====================================== ===================================================

    In the last case discrete latents are summed out, and continuous ones of each datum's own are
    drawn along and weighted.

    Args:
        model: A model with ``log_prob(x)``, or a Pyro program.
        x: Data ``(N, ...)`` that the fit has not seen, or a tuple of several arguments.
        guide: The fitted guide; needed unless log p(x) is exact.
        num_samples: S, draws for each datum.
        max_memory: Bytes for tensors.

    Raises:
        OptionError: If there is neither ``log_prob`` nor a guide, or an option cannot work.
        DataError: If the data are empty or not finite.
        SiteMismatchError: If model and guide do not fit together.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> def model(x):
        ...     m = pyro.sample("m", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(m, 1.0), obs=x)
        >>> def guide(x):  # a posterior from other data
        ...     pyro.sample("m", dist.Normal(0.5, 0.1))
        >>> found = held_out(model, torch.tensor([0.5, 1.5]), guide)
        >>> exact = dist.Normal(0.5, 1.01**0.5).log_prob(torch.tensor([0.5, 1.5]))
        >>> bool(((found.value - exact).abs() < 4 * found.monte_carlo_error + 1e-9).all())
        True
    """
    num_samples = positive_int("num_samples", num_samples)
    args = as_arguments(x, model, *(() if guide is None else (guide,)))
    shared = () if guide is None else latents_of(guide, args).shared
    if isinstance(model, HasLogProb) and not shared:
        value = exact_log_prob(model, args)
        return HeldOut(value, value.new_zeros(len(value)), None, None, None)
    if guide is None:
        raise OptionError(
            f"{type(model).__name__} has no log_prob(x), so that log p(x) needs draws; give the "
            "guide, held_out(model, x, guide)"
        )
    if not shared:
        found = log_likelihood(model, guide, args, num_samples, max_memory=max_memory)
        errors, sizes = found.standard_error, found.effective_sample_size
        return HeldOut(found.value, errors, sizes, None, num_samples)
    local = draw(model, guide, args, num_samples, max_memory).local
    mean = log_mean(local)
    return HeldOut(
        mean.value, mean.standard_error, mean.effective_sample_size, local.mean(0), num_samples
    )


@dataclass(frozen=True)
class Evidence:
    r"""Two lower bounds on :math:`\log p(X)`, the evidence of all data together, in nats.

    Differences between models are log Bayes factors. Divided by ``num_data`` they are on the scale
    of everything else here.
    """

    elbo: float
    r""":math:`\mathbb E_q[\log p(X, \theta) - \log q(\theta)]`."""
    elbo_standard_error: float
    """Monte Carlo standard error of ``elbo``."""
    value: float
    r""":math:`\log \frac1S \sum_s p(X, \theta_s) / q(\theta_s)`, on average nearer."""
    standard_error: float
    """Monte Carlo standard error of ``value`` by the delta method."""
    effective_sample_size: float
    """Kish's; below 2, ``value`` rests on one draw, and is little better than ``elbo``."""
    num_data: int
    """N."""

    @property
    def per_datum(self) -> float:
        """``value`` in nats per datum."""
        return self.value / self.num_data


def evidence(
    model: Program,
    guide: Program,
    x: Any,
    *,
    num_samples: int = 1000,
    max_memory: int = MEMORY,
) -> Evidence:
    """Bound the log marginal likelihood of a model whose parameters have a prior.

    Args:
        model: A Pyro program with latents outside the data plate.
        guide: Its guide, fitted to these data.
        x: The data, ``(N, ...)``, or a tuple of several arguments.
        num_samples: S.
        max_memory: Bytes for tensors.

    Raises:
        OptionError: If no latent outside the data plate has a posterior with a density, or an
            option cannot work.
        DataError: If the data are empty or not finite.
        SiteMismatchError: If model and guide do not fit together.

    References:
        Burda, Grosse, Salakhutdinov 2015, https://arxiv.org/abs/1509.00519

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> def model(x):
        ...     m = pyro.sample("m", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(m, 1.0), obs=x)
        >>> def guide(x):
        ...     pyro.sample("m", dist.Normal(x.sum() / 3, 3**-0.5))
        >>> found = evidence(model, guide, torch.tensor([1.0, 2.0]), num_samples=10)
        >>> round(found.elbo, 3), round(found.value, 3)  # the guide is exact
        (-3.387, -3.387)
    """
    num_samples = positive_int("num_samples", num_samples)
    args = as_arguments(x, model, guide)
    refuse_points(guide, args, "the evidence")
    joint = draw(model, guide, args, num_samples, max_memory).joint
    mean = log_mean(joint)
    error = float(joint.std() / num_samples**0.5) if num_samples > 1 else math.inf
    return Evidence(
        elbo=float(joint.mean()),
        elbo_standard_error=error,
        value=float(mean.value),
        standard_error=float(mean.standard_error),
        effective_sample_size=float(mean.effective_sample_size),
        num_data=len(args[0]),
    )


def refuse_points(guide: Program, args: tuple[Tensor, ...], wanted: str) -> None:
    """Refuse a guide without a density over latents that all data share.

    Args:
        guide: The guide.
        args: Its arguments.
        wanted: What needs one, for the message.

    Raises:
        OptionError: If it has none.
    """
    latents = latents_of(guide, args)
    if latents.points:
        raise OptionError(
            f"the guide fixes {list(latents.points)} at a point, and {wanted} needs a posterior "
            "with a density; fit a guide that has one, such as guides.MeanField"
        )
    if not latents.spread:
        raise OptionError(
            f"no latent lies outside the data plate, and {wanted} is about those; use "
            "selection.held_out, or information_criteria where log p(x) is exact"
        )

"""Leave-one-out predictive densities from one fit, by Pareto-smoothed importance sampling."""

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray
from jaxtyping import Float
from torch import Tensor

from pyro_models.errors import OptionError
from pyro_models.infer.inspection import as_arguments
from pyro_models.infer.weights import Program
from pyro_models.options import positive_int
from pyro_models.posterior import arviz
from pyro_models.selection.draws import Draws, draw, latents_of
from pyro_models.selection.predictive import MEMORY, refuse_points

_FEWEST = 25
# Log-ratios that differ by less are equal but for rounding, and have no tail.
_ROUNDING = 1e-4


class ParetoWarning(UserWarning):
    """Importance weights have so heavy a tail that an estimate from them cannot be trusted."""


@dataclass(frozen=True)
class Loo:
    r"""Leave-one-out log predictive densities, in nats, float64 on the CPU; higher is better."""

    value: Float[Tensor, " N"]
    r""":math:`\log p(x_n \mid x_{-n})`, with the guide's draws weighted to be the posterior's."""
    pareto_k: Float[Tensor, " N"]
    """Tail of the weights behind each value; above ``good_k`` it cannot be trusted."""
    guide_k: float
    r"""Tail of :math:`p(X, \theta_s) / q(\theta_s)`: how far the guide is from the posterior."""
    uncorrected: Float[Tensor, " N"]
    """What the values would be if the guide were the posterior, as ``arviz.loo`` has it."""
    effective_parameters: float
    """How much higher the log density of the data is when they are not left out, in all."""
    num_samples: int
    """S: draws from the guide."""

    @property
    def mean(self) -> float:
        """Nats per datum."""
        return float(self.value.mean())

    @property
    def standard_error(self) -> float:
        """Standard error of ``mean`` as an estimate for new data; NaN for one datum."""
        count = len(self.value)
        return float(self.value.std() / count**0.5) if count > 1 else math.nan

    @property
    def good_k(self) -> float:
        """The largest k of a trustworthy value: 0.7, or less with few draws."""
        return min(0.7, 1 - 1 / math.log10(self.num_samples))

    @property
    def num_bad(self) -> int:
        """Data whose value cannot be trusted."""
        return int((self.pareto_k > self.good_k).sum())


def psis_loo(
    model: Program,
    guide: Program,
    x: Any,
    num_samples: int = 1000,
    *,
    max_memory: int = MEMORY,
) -> Loo:
    r"""Estimate how well each datum is predicted from all others, without fitting again.

    .. math::
        p(x_n \mid x_{-n}) \approx \frac{\sum_s w_{sn}\, p(x_n \mid \theta_s)}{\sum_s w_{sn}},
        \qquad
        w_{sn} = \frac{p(X, \theta_s)}{q(\theta_s)} \cdot \frac{1}{p(x_n \mid \theta_s)}, \quad
        \theta_s \sim q(\theta)

    The second factor leaves datum n out; the first turns draws of the guide into draws of the
    posterior, so that the estimate is right also where the guide is not exact, as far as its tails
    allow. The weights are smoothed by ArviZ. Discrete latents of each datum's own are summed out
    of :math:`p(x_n \mid \theta)`. Continuous ones are refused: given draws of its own latents, the
    density of a datum says nothing of a prediction without it.

    Args:
        model: A Pyro program with latents outside the data plate.
        guide: Its guide, fitted to these data.
        x: The data, ``(N, ...)``, or a tuple of several arguments.
        num_samples: S, at least 25.
        max_memory: Bytes for tensors.

    Raises:
        OptionError: If each datum has continuous latents of its own, no latent outside the data
            plate has a posterior with a density, or an option cannot work.
        DataError: If the data are empty or not finite.
        SiteMismatchError: If model and guide do not fit together.

    Warns:
        ParetoWarning: If the guide is too far from the posterior, or data are too influential.

    References:
        Vehtari, Gelman, Gabry 2017, https://arxiv.org/abs/1507.04544
        Yao, Vehtari, Simpson, Gelman 2018, https://arxiv.org/abs/1802.02538
        Magnusson, Andersen, Jonasson, Vehtari 2019, https://arxiv.org/abs/1904.10679

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     m = pyro.sample("m", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(m, 1.0), obs=x)
        >>> def guide(x):
        ...     n = len(x) + 1
        ...     pyro.sample("m", dist.Normal(x.sum() / n, n**-0.5))
        >>> x = torch.linspace(-1.0, 1.0, 20)
        >>> exact = dist.Normal((x.sum() - x) / 20, (1 + 1 / 20) ** 0.5).log_prob(x)
        >>> bool((psis_loo(model, guide, x).value - exact).abs().max() < 0.02)
        True
    """
    num_samples = positive_int("num_samples", num_samples)
    if num_samples < _FEWEST:
        raise OptionError(f"num_samples={num_samples}; tails need at least {_FEWEST} draws")
    args = as_arguments(x, model, guide)
    latents = latents_of(guide, args)
    if latents.continuous:
        raise OptionError(
            f"the latents {list(latents.continuous)} are each datum's own and continuous: they "
            "have seen the datum that is to be left out; use selection.held_out on data that the "
            "fit has not seen"
        )
    refuse_points(guide, args, "leaving data out")
    found = _estimate(draw(model, guide, args, num_samples, max_memory))
    _warn(found)
    return found


def _estimate(draws: Draws) -> Loo:
    density = draws.local.T.contiguous()  # (N, S)
    toward = draws.joint  # (S,)
    corrected, k = _smoothed(toward - density)
    plain, _ = _smoothed(-density)
    whole, guide_k = _smoothed(toward.unsqueeze(0))
    value = (corrected + density).logsumexp(-1)
    return Loo(
        value=value,
        pareto_k=k,
        guide_k=float(guide_k),
        uncorrected=(plain + density).logsumexp(-1),
        effective_parameters=float(((whole + density).logsumexp(-1) - value).sum()),
        num_samples=density.shape[1],
    )


def _smoothed(log_ratios: Float[Tensor, "N S"]) -> tuple[Tensor, Tensor]:
    """Log-weights that sum to one in each row, with their largest smoothed, and their tails' k."""
    rows = log_ratios - log_ratios.amax(-1, keepdim=True)
    weights, k = rows.clone(), rows.new_zeros(len(rows))
    tailed = rows.amin(-1) < -_ROUNDING
    if bool(tailed.any()):
        smoothed, tails = _psis(rows[tailed].numpy())
        weights[tailed], k[tailed] = torch.from_numpy(smoothed), torch.from_numpy(tails)
    return weights.log_softmax(-1), k


def _psis(log_ratios: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smoothed log-weights and k, row by row, by the version of ArviZ that is there."""
    # ArviZ 1 still answers to old names, with a warning: look, don't ask.
    old: Any = vars(arviz).get("psislw")
    if old is not None:
        weights, k = old(log_ratios)
    else:  # there the method takes log-densities, whose negatives the ratios are
        named = xarray.DataArray(-log_ratios, dims=("datum", "draw"))
        accessor: Any = named.azstats
        weights, k = (found.values for found in accessor.psislw(dim="draw"))
    return np.array(weights), np.array(k, dtype=np.float64)


def _warn(found: Loo) -> None:
    if found.guide_k > found.good_k:
        warnings.warn(
            f"the guide is far from the posterior: its weights have a tail of k={found.guide_k:.2f}"
            f", above {found.good_k:.2f}, so that the correction rests on few draws and "
            "leave-one-out values may be off by much; use a richer guide, or selection.held_out",
            ParetoWarning,
            stacklevel=3,
        )
    elif found.num_bad:
        warnings.warn(
            f"{found.num_bad} of {len(found.value)} leave-one-out values cannot be trusted "
            f"(k above {found.good_k:.2f}): these data move the posterior far; use more draws, or "
            "fit without them",
            ParetoWarning,
            stacklevel=3,
        )

"""Parts of the mixture's EM: what its steps pass on, new parameters, components that starve."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from pyro_models.covariance_parameters import Covariances, Moments
from pyro_models.errors import DataError, OptionError
from pyro_models.likelihoods.base import check_finite

# A component that explains less than this keeps its mean and covariance: quotients of such numbers
# would be noise, and the likelihood does not feel them.
_NOTHING = 1e-20

# Weights that a starving component is tried with, as parts of what one of K equal ones would have.
_SHARES = (1.0, 0.1, 0.01, 0.001)

_ROWS = 2**12  # data in one product


@dataclass(frozen=True, eq=False)
class MixturePosterior:
    """Which component each datum comes from, under the parameters of the time."""

    log_prob: Float[Tensor, " num_data"]
    """log p(x_n), ``(N,)``."""
    log_responsibilities: Float[Tensor, "num_data components"]
    """log p(component | x_n), ``(N, K)``."""

    @property
    def responsibilities(self) -> Float[Tensor, "num_data components"]:
        """p(component | x_n), ``(N, K)``."""
        return self.log_responsibilities.exp()


class MixtureStatistics(NamedTuple):
    """Means per datum in float64 that the M-step depends on, around the model's ``center`` c."""

    weights: Tensor
    """Mean responsibility, ``(K,)``."""
    first: Tensor
    """Mean of responsibility times x - c, ``(K, D)``."""
    second: Tensor
    """Mean of responsibility times products ``(K, D, D)`` or squares ``(K, D)`` of x - c."""


def check_weights(weights: Float[Tensor, " components"], num_components: int) -> None:
    """Refuse weights that are no probabilities above 0.

    Args:
        weights: ``(K,)``.
        num_components: K.

    Raises:
        OptionError: If they are not.
    """
    good = weights.shape == (num_components,) and bool((weights > 0).all())
    if not good or abs(float(weights.sum()) - 1) > 1e-4:
        raise OptionError(
            f"weights={weights.tolist()} are not {num_components} numbers above 0 whose sum is "
            "1; give such"
        )


def check_means(means: Tensor, like: Tensor) -> None:
    """Refuse means that are not finite, or not of this shape, with an ``OptionError``."""
    if means.shape != like.shape or not bool(means.isfinite().all()):
        raise OptionError(
            f"means have shape {tuple(means.shape)}, but finite numbers of shape "
            f"{tuple(like.shape)} are expected; give one row a component"
        )


def check_data(
    x: Shaped[Tensor, "num_data *datum"],
    rows: Float[Tensor, "num_data data_dim"],
    num_components: int,
    floor: float,
) -> None:
    """Refuse data that a mixture cannot be fitted to.

    Args:
        x: As given.
        rows: As ``(N, D)``.
        num_components: K.
        floor: Least variance.

    Raises:
        DataError: If there are fewer data than components, or a number is not finite or so large
            that its squared distance, in standard deviations, may overflow.
    """
    check_finite(x)
    if len(x) < num_components:
        raise DataError(
            f"{len(x)} data for {num_components} components; give at least as many data, or "
            "fewer components"
        )
    most = (torch.finfo(rows.dtype).max * min(floor, 1.0) / rows.shape[1]) ** 0.5 / 8
    size = float(rows.abs().max())
    if size > most:
        raise DataError(
            f"x holds {size:g}, whose square in units of the covariance floor {floor:g} overflows "
            f"{rows.dtype}, as it may above {most:.0e}; rescale the data, or drop what is no datum"
        )


def weighted_means(
    x: Float[Tensor, "num_data data_dim"],
    log_weights: Float[Tensor, "num_data components"],
    otherwise: Float[Tensor, "components data_dim"],
) -> Float[Tensor, "components data_dim"]:
    """Weighted means, which are to be corrected by what is left of the differences from them.

    Args:
        x: Data, ``(N, D)``.
        log_weights: ``(N, K)``.
        otherwise: The values for components without weight.
    """
    center = x.mean(0, dtype=torch.float64).to(x.dtype)
    counts = torch.zeros(log_weights.shape[1], 1, dtype=torch.float64, device=x.device)
    sums = torch.zeros_like(otherwise, dtype=torch.float64)
    for start in range(0, len(x), _ROWS):
        part = slice(start, start + _ROWS)
        weights = log_weights.T[:, part].exp()  # (K, batch)
        counts += weights.sum(-1, keepdim=True)
        sums += weights @ (x[part] - center)
    means = center + sums / counts.clamp_min(_NOTHING)
    return torch.where(counts > _NOTHING, means, otherwise).to(x.dtype)


def update(
    weight_logits: Tensor,
    means: Tensor,
    spread: Covariances,
    moments: Moments,
    centers: Float[Tensor, "components data_dim"],
    least_count: int = 0,
) -> None:
    """Set a mixture's parameters to the best for given moments, in place.

    Args:
        weight_logits: Of the components, ``(K,)``.
        means: ``(K, D)``.
        spread: Their covariances.
        moments: Sums around the centres.
        centers: ``(K, D)``.
        least_count: Components that explain less get the average covariance.

    Raises:
        DataError: If a moment is not finite.
    """
    if not all(bool(moment.isfinite().all()) for moment in moments):
        raise DataError(
            "the data or their posterior hold NaN or infinity, so there is no M-step; check the "
            "data with model.check(x)"
        )
    counts, first, second = moments
    alive = counts > _NOTHING
    divisor = torch.where(alive, counts, torch.ones_like(counts)).unsqueeze(-1)
    shift = torch.where(alive.unsqueeze(-1), first / divisor, torch.zeros_like(first))
    if second.ndim == 3:
        products = shift.unsqueeze(-1) * shift.unsqueeze(-2)
        central = second / divisor.unsqueeze(-1) - products
    else:
        central = second / divisor - shift.square()
    weights = counts / counts.sum()
    if least_count:
        few = counts < least_count
        average = torch.tensordot(weights, central, 1)
        central[few] = average
        alive = alive | few
    means.copy_(torch.where(alive.unsqueeze(-1), centers + shift, means))
    spread.write(spread.pool(central, counts), alive)
    tiny = torch.finfo(weight_logits.dtype).tiny
    weight_logits.copy_(weights.clamp_min(tiny).log())


@torch.no_grad()
def revive(
    weight_logits: Tensor,
    means: Tensor,
    spread: Covariances,
    x: Float[Tensor, "num_data data_dim"],
    k: int,
) -> bool:
    r"""Move component k to the datum that is explained worst, if the likelihood is higher then.

    It gets the mixture's average covariance, and the best of a few weights ε in

    .. math:: \textstyle \sum_n \log\big((1 - \varepsilon)\, p_{-k}(x_n)
              + \varepsilon\, \mathcal N(x_n \mid x_*, \bar\Sigma)\big).

    Args:
        weight_logits: Of the components, ``(K,)``.
        means: ``(K, D)``.
        spread: Their covariances.
        x: Data, ``(N, D)``.
        k: The component.

    Returns:
        Whether it was moved; otherwise all is as it was.
    """
    parameters = [weight_logits, means, *spread.parameters()]
    before = [parameter.clone() for parameter in parameters]
    total = _log_prob(weight_logits, means, spread, x)
    average = torch.tensordot(weight_logits.softmax(-1), spread.dense(), 1)
    where = torch.arange(len(means), device=x.device) == k
    means[k] = x[total.argmin()]
    dense = average.double().expand(len(means), -1, -1)
    spread.write(spread.compact(dense), where)
    _give_weight(weight_logits, means, spread, x, k)
    if _log_prob(weight_logits, means, spread, x).mean() > total.mean():
        return True
    for parameter, value in zip(parameters, before, strict=True):
        parameter.copy_(value)
    return False


def _log_prob(logits: Tensor, means: Tensor, spread: Covariances, x: Tensor) -> Tensor:
    """log p(x_n) in float64, ``(N,)``."""
    log_weights = logits.log_softmax(-1).unsqueeze(-1)
    parts = [(log + log_weights).logsumexp(0) for _, log in spread.log_density(x, means)]
    return torch.cat(parts).double()


def _give_weight(logits: Tensor, means: Tensor, spread: Covariances, x: Tensor, k: int) -> None:
    """Give component k the weight under which the data are most probable, of those tried."""
    rest = logits.clone()
    rest[k] = -torch.inf
    others = _log_prob(rest, means, spread, x)
    own = torch.cat([log[k] for _, log in spread.log_density(x, means)]).double()
    shares = torch.tensor([share / len(means) for share in _SHARES], dtype=own.dtype)
    shares = shares.to(own.device).unsqueeze(-1)
    both = torch.logaddexp(others + torch.log1p(-shares), own + shares.log())  # (shares, N)
    best = shares[both.mean(-1).argmax()]
    kept = rest.log_softmax(-1) + torch.log1p(-best).to(rest.dtype)
    kept[k] = best.log().to(rest.dtype).squeeze()
    logits.copy_(kept)

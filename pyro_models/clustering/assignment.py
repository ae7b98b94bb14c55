"""Which cluster each datum belongs to, by any pair with a discrete latent of each datum's own."""

from typing import Any

import torch
from jaxtyping import Float
from pyro import poutine
from pyro.infer import config_enumerate
from torch import Tensor
from torch.distributions import Categorical

from pyro_models.errors import SiteMismatchError
from pyro_models.infer import embed
from pyro_models.infer.inspection import (
    as_arguments,
    base_distribution,
    data_size,
    latent_sites,
)
from pyro_models.infer.sites import data_frame, plate_depth, samples
from pyro_models.infer.weights import Program
from pyro_models.options import positive_int


def assign(
    model: Program, guide: Program, x: Any, *, num_samples: int = 100, site: str | None = None
) -> Float[Tensor, "num_data clusters"]:
    r"""The posterior probabilities of each datum's clusters.

    .. math:: \mathbb E_{q(w, z \mid x)} \big[q(\text{component} \mid w, z, x)\big]

    They are exact where the guide knows them without drawing anything else, as of a mixture, and
    an average over ``num_samples`` runs of the guide otherwise. A guide that does not sample the
    component leaves it to the model: its posterior given what the guide draws, by Bayes' rule over
    all its values.

    Args:
        model: A Pyro program.
        guide: A Pyro program with the same arguments.
        x: Data, ``(N, ...)``, or a tuple of several arguments, as for ``fit``.
        num_samples: Runs of the guide to average over.
        site: Name of the latent, where there are several of its kind.

    Returns:
        ``(N, K)``; each row adds up to 1.

    Raises:
        SiteMismatchError: If there is no categorical latent of each datum's own, or not only one
            and ``site`` is not given.
        DataError: If the data are empty or not finite.
        OptionError: If ``num_samples`` is no whole number of at least 1.

    References:
        Dilokthanakul et al. 2016, https://arxiv.org/abs/1611.02648

    Example:
        >>> from pyro_models import pairs
        >>> pair = pairs.vade(64, latent_dim=2, num_components=10)
        >>> assign(pair.model, pair.guide, torch.zeros(5, 64)).shape
        torch.Size([5, 10])
    """
    positive_int("num_samples", num_samples)
    args = as_arguments(x, guide)
    with torch.no_grad():
        trace = poutine.trace(guide).get_trace(*args)
    sampled = _clusters(trace, len(args[0]))
    if sampled:
        name = _only(sampled, site, "the guide samples")
        return embed(guide, x, num_samples=num_samples)[name].mean
    runs = [_by_bayes(model, guide, args, site) for _ in range(num_samples)]
    return torch.stack(runs).mean(0)


def _clusters(trace: Any, size: int) -> list[str]:
    """Names of the categorical latents that each datum has of its own."""
    return [
        name
        for name, node in latent_sites(trace).items()
        if isinstance(base_distribution(node["fn"]), Categorical) and data_size(node) == size
    ]


def _only(found: list[str], site: str | None, whose: str) -> str:
    if site is not None:
        if site not in found:
            raise SiteMismatchError(
                f"site {site!r} is no categorical latent of each datum's own; {whose} {found}"
            )
        return site
    if len(found) != 1:
        raise SiteMismatchError(
            f"{whose} the categorical latents {found} of each datum's own, and one is needed to "
            "assign data to; name one of several with site=, or give a pair with clusters"
        )
    return found[0]


@torch.no_grad()
def _by_bayes(model: Program, guide: Program, args: tuple, site: str | None) -> Tensor:
    """p(component | x, all that the guide draws), ``(N, K)``, at one run of the guide."""
    drawn = poutine.trace(guide).get_trace(*args)
    plain = poutine.trace(poutine.replay(model, drawn)).get_trace(*args)
    # Another latent that the guide leaves open would have to be summed out beside it.
    unknown = [name for name in latent_sites(plain) if name not in drawn.nodes]
    clusters = [name for name in _clusters(plain, len(args[0])) if [name] == unknown]
    _only(clusters, site, f"the guide leaves the model {unknown}, of which can be used")
    depth = plate_depth(plain)
    program = poutine.replay(config_enumerate(model, "parallel"), drawn)
    program = poutine.enum(program, first_available_dim=-depth - 1)
    trace = poutine.trace(program).get_trace(*args)
    trace.compute_log_prob()
    frame = data_frame(trace)
    column = -1 if frame is None or frame.dim is None else frame.dim
    terms = [
        _at_data(node["unscaled_log_prob"], depth, column)
        for node in samples(trace)
        if node["unscaled_log_prob"].dim() > depth
    ]
    joint = sum(terms[1:], terms[0])  # (K, N)
    return joint.log_softmax(0).exp().T


def _at_data(log_prob: Tensor, depth: int, column: int) -> Tensor:
    """A log-density ``(K, *plates)`` summed over all plates but that of the data, ``(K, N)``."""
    others = [dim for dim in range(-depth, 0) if dim != column]
    return log_prob.sum(others) if others else log_prob

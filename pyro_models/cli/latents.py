"""What kinds of latents a fitted pair has: what can be shown of it depends on them."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from pyro import poutine
from pyro.distributions import Categorical
from torch import Tensor

from pyro_models.cli.fitted import Fitted
from pyro_models.infer import embed, sample
from pyro_models.infer.dry_run import dry_run
from pyro_models.infer.inspection import base_distribution, data_size, latent_sites

_POSTERIOR_DRAWS = 100


@dataclass(frozen=True)
class Latents:
    """Names of the latents that the guide samples."""

    codes: tuple[str, ...]
    """Each datum's own numbers: continuous, or binary units."""
    components: tuple[str, ...]
    """Each datum's own choice of one among several."""
    shared: tuple[str, ...]
    """Of all data together."""


def latents_of(pair: Fitted, x: Float[Tensor, "n data_dim"]) -> Latents:
    """See which latents the guide samples, by one run.

    Args:
        pair: The pair.
        x: Some data, as the model sees them.
    """
    with dry_run(pair.guide, pair.guide, x):
        trace = poutine.trace(pair.guide).get_trace(x)
    codes, components, shared = [], [], []
    for name, node in latent_sites(trace).items():
        if data_size(node) is None:
            shared.append(name)
        elif isinstance(base_distribution(node["fn"]), Categorical):
            components.append(name)
        else:
            codes.append(name)
    return Latents(tuple(codes), tuple(components), tuple(shared))


def responsibilities(
    pair: Fitted, x: Float[Tensor, "n data_dim"], latents: Latents
) -> Float[Tensor, "n components"] | None:
    """The guide's probabilities of each datum's component; None if there is not one such latent.

    Args:
        pair: The pair.
        x: Data, as the model sees them.
        latents: Its latents.
    """
    if len(latents.components) != 1:
        return None
    return embed(pair.guide, x)[latents.components[0]].mean


def new_data(
    pair: Fitted, x: Float[Tensor, "n data_dim"], count: int
) -> Float[Tensor, "count data_dim"]:
    """Draw new data from a fitted pair.

    Latents that all data share are drawn from the guide, which knows the training data, and not
    from the prior: anew for each of at most 100 parts of what is drawn.

    Args:
        pair: The pair.
        x: The training data, as the model sees them.
        count: How many.
    """
    shared = latents_of(pair, x).shared
    if not shared:
        return sample(pair.model, count)
    parts = torch.arange(count).tensor_split(min(count, _POSTERIOR_DRAWS))
    drawn = []
    with torch.no_grad():
        for part in parts:
            trace: Any = poutine.trace(pair.guide).get_trace(x, num_data=len(x))
            known = {name: trace.nodes[name]["value"] for name in shared}
            drawn.append(poutine.condition(pair.model, data=known)(num_data=len(part)))
    return torch.cat(drawn)

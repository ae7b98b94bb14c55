"""The pair whose code is a broken stick."""

from collections.abc import Sequence
from typing import Any, cast

from jaxtyping import Float
from torch import Tensor, nn

from guides import AmortizedKumaraswamy, AmortizedSticks
from pyro_models.errors import OptionError
from pyro_models.infer import ELBO, Objective
from pyro_models.likelihoods import Likelihood
from pyro_models.pairs.registry import Pair, check_objective, register
from pyro_models.pairs.suited import default_likelihood, suited
from pyro_models.stick_breaking_vae import StickBreakingVAE


def stick_breaking_vae(
    data_dim: int,
    truncation: int = 50,
    concentration: float = 5.0,
    hidden: Sequence[int] = (500,),
    likelihood: Likelihood | None = None,
    posterior: type[AmortizedSticks] = AmortizedKumaraswamy,
    activation: type[nn.Module] = nn.ReLU,
    objective: Objective | None = None,
    preprocess: nn.Module | None = None,
) -> Pair:
    r"""A stick-breaking variational autoencoder.

    Args:
        data_dim: Numbers a datum; images are flattened.
        truncation: K, pieces of the stick, at least 2.
        concentration: :math:`\alpha` of the prior Beta(1, α) of each fraction.
        hidden: Widths of the encoder's hidden layers; the decoder has them in reverse.
        likelihood: What the decoder's outputs mean; ``Bernoulli()`` if not given.
        posterior: Class of the guide: ``guides.AmortizedKumaraswamy``, ``AmortizedBeta``,
            ``AmortizedLogitNormal`` or ``AmortizedGammaRatio``.
        activation: Class of both networks' activation.
        objective: What to maximise; ``ELBO()`` if not given.
        preprocess: Module between the data and the encoder; see ``guides.AmortizedSticks``.

    Raises:
        OptionError: If an option has no meaning, or does not go with another.

    Example:
        >>> import torch
        >>> stick_breaking_vae(784, truncation=50).guide(torch.zeros(20, 784)).shape
        torch.Size([20, 49])
    """
    check_objective(objective)
    is_guide = isinstance(posterior, type) and issubclass(posterior, AmortizedSticks)
    if not is_guide or posterior is AmortizedSticks:
        raise OptionError(
            f"posterior={posterior!r} is no class of guides for sticks; give "
            "guides.AmortizedKumaraswamy, AmortizedBeta, AmortizedLogitNormal or "
            "AmortizedGammaRatio"
        )
    guide = posterior(
        data_dim, truncation, concentration, hidden, activation, preprocess=preprocess
    )
    model = StickBreakingVAE(
        data_dim, truncation, concentration, tuple(hidden)[::-1], likelihood, activation
    )
    return Pair(model, guide, ELBO() if objective is None else objective)


@register("stick_breaking_vae", stick_breaking_vae)
def _stick_breaking_vae_for(x: Float[Tensor, "num_data data_dim"], **chosen: Any) -> Pair:
    pair = stick_breaking_vae(x.shape[1], **suited(x, chosen, default_likelihood))
    pair.model.to(x)
    pair.guide.to(x)
    cast(StickBreakingVAE, pair.model).initialize(x)
    return pair

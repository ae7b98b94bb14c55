"""Pairs of networks with classes of which some are known."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from guides import (
    AmortizedClassAndCode,
    Covariance,
    Diagonal,
    KumaraswamySticks,
    NormalCodePosterior,
    StickCodePosterior,
    StickFamily,
)
from pyro_models.codes import NormalCode, StickCode
from pyro_models.errors import DataError, OptionError
from pyro_models.infer import ELBO, Objective, Supervised
from pyro_models.likelihoods import Likelihood
from pyro_models.pairs.registry import Pair, check_objective, register, rows
from pyro_models.pairs.suited import default_likelihood, suited
from pyro_models.semi_supervised import LearnedWeights, SemiSupervisedVAE

ALPHA = 10.0
"""Weight of the classifier's term per datum, where Kingma et al. have 0.1: with a tenth of the
labels of black and white digits that leaves M2 more than four errors where this leaves three
(``benchmarks/results/choice``)."""


def semi_supervised_vae(
    data_dim: int,
    num_classes: int = 10,
    latent_dim: int = 2,
    hidden: Sequence[int] = (200,),
    likelihood: Likelihood | None = None,
    weights: Float[Tensor, " classes"] | LearnedWeights | None = None,
    covariance: Covariance = Diagonal(),  # noqa: B008 (immutable)
    activation: type[nn.Module] = nn.Tanh,
    objective: Objective | None = None,
    preprocess: nn.Module | None = None,
) -> Pair:
    """A variational autoencoder with a class beside its code, known of some data: M2.

    ``pairs.build`` makes it for data ``(x, y)``, with -1 in y where the class is not known, and
    gives the classifier's term the weight 10 N / N_labelled a labelled datum, a hundred times that
    of Kingma et al.; another one by ``objective=Supervised(ELBO(summed=("y_unobserved",)), "y",
    weight)``.

    Args:
        data_dim: Numbers a datum; images are flattened.
        num_classes: Number of classes.
        latent_dim: Dimension of z.
        hidden: Widths of the hidden layers of classifier and encoder; the decoder has them in
            reverse.
        likelihood: What the decoder's outputs mean; ``Bernoulli()`` if not given.
        weights: Class probabilities, or ``semi_supervised.LearnedWeights()``; equal if not given.
        covariance: ``guides.Diagonal()`` or ``guides.Full()``, of the code's posterior.
        activation: Class of the networks' activation.
        objective: What to maximise; with the class summed over and the classifier's term at weight
            1 if not given.
        preprocess: Module between the data and the guide's networks.

    Raises:
        OptionError: If an option has no meaning, or does not go with another.

    Example:
        >>> pair = semi_supervised_vae(64, num_classes=10, latent_dim=5)
        >>> x, y = torch.zeros(3, 64), torch.tensor([7, -1, -1])
        >>> pair.objective.loss(pair.model, pair.guide, x, y) > 0
        True
    """
    check_objective(objective)
    code = NormalCodePosterior(latent_dim, covariance)
    guide = AmortizedClassAndCode(data_dim, num_classes, code, hidden, activation, preprocess)
    reverse = tuple(hidden)[::-1]
    model = SemiSupervisedVAE(
        data_dim, num_classes, NormalCode(latent_dim), reverse, likelihood, activation, weights
    )
    return Pair(model, guide, objective or _objective(1.0))


def semi_supervised_stick_breaking_vae(
    data_dim: int,
    num_classes: int = 10,
    truncation: int = 50,
    concentration: float = 5.0,
    hidden: Sequence[int] = (500,),
    likelihood: Likelihood | None = None,
    weights: Float[Tensor, " classes"] | LearnedWeights | None = None,
    posterior: type[StickFamily] = KumaraswamySticks,
    activation: type[nn.Module] = nn.ReLU,
    objective: Objective | None = None,
    preprocess: nn.Module | None = None,
) -> Pair:
    r"""A stick-breaking autoencoder with a class beside its code, known of some data.

    ``pairs.build`` makes it as :func:`semi_supervised_vae`.

    Args:
        data_dim: Numbers a datum; images are flattened.
        num_classes: Number of classes.
        truncation: K, pieces of the stick, at least 2.
        concentration: :math:`\alpha` of the prior Beta(1, α) of each fraction.
        hidden: Widths of the hidden layers of classifier and encoder; the decoder has them in
            reverse.
        likelihood: What the decoder's outputs mean; ``Bernoulli()`` if not given.
        weights: Class probabilities, or ``semi_supervised.LearnedWeights()``; equal if not given.
        posterior: Class of the fractions' family: ``guides.KumaraswamySticks``, ``BetaSticks``,
            ``LogitNormalSticks`` or ``GammaRatioSticks``.
        activation: Class of the networks' activation.
        objective: What to maximise; with the class summed over and the classifier's term at weight
            1 if not given.
        preprocess: Module between the data and the guide's networks.

    Raises:
        OptionError: If an option has no meaning, or does not go with another.

    Example:
        >>> pair = semi_supervised_stick_breaking_vae(64, num_classes=10)
        >>> pair.guide(torch.zeros(3, 64), torch.tensor([7, -1, -1])).shape
        torch.Size([3, 49])
    """
    check_objective(objective)
    if not (isinstance(posterior, type) and issubclass(posterior, StickFamily)):
        raise OptionError(
            f"posterior={posterior!r} is no class of families for sticks; give "
            "guides.KumaraswamySticks, BetaSticks, LogitNormalSticks or GammaRatioSticks"
        )
    code = StickCodePosterior(truncation, posterior(concentration))
    guide = AmortizedClassAndCode(data_dim, num_classes, code, hidden, activation, preprocess)
    sticks, reverse = StickCode(truncation, concentration), tuple(hidden)[::-1]
    model = SemiSupervisedVAE(
        data_dim, num_classes, sticks, reverse, likelihood, activation, weights
    )
    return Pair(model, guide, objective or _objective(1.0))


def _objective(weight: float) -> Supervised:
    return Supervised(ELBO(summed=("y_unobserved",)), "y", weight)


def classify(
    pair: Pair | nn.Module, x: Shaped[Tensor, "num_data *datum"], batch_size: int = 4096
) -> Float[Tensor, "num_data classes"]:
    """Class probabilities q(y | x) of a semi-supervised pair, ``(num_data, num_classes)``.

    Args:
        pair: The pair, or its guide.
        x: Data, ``(num_data, data_dim)`` or images.
        batch_size: Data at a time.

    Raises:
        OptionError: If the guide is no classifier.
        DataError: If shape, type or device of ``x`` do not fit.

    Example:
        >>> pair = semi_supervised_vae(64, num_classes=10)
        >>> classify(pair, torch.zeros(3, 64)).shape
        torch.Size([3, 10])
    """
    guide = pair.guide if isinstance(pair, Pair) else pair
    if not isinstance(guide, AmortizedClassAndCode):
        raise OptionError(
            f"the guide is a {type(guide).__name__}, which is no classifier; give a pair such as "
            "semi_supervised_vae, or its guide"
        )
    with torch.no_grad():
        return torch.cat([guide.classify(part) for part in x.split(batch_size)])


def _data_and_labels(data: Any) -> tuple[Tensor, Tensor]:
    if not (isinstance(data, tuple) and len(data) == 2):
        raise DataError(
            f"a semi-supervised pair takes a tuple of data and labels, and got a "
            f"{type(data).__name__}; write (x, y), with -1 in y where the class is not known"
        )
    x, y = rows(data[0]), torch.as_tensor(data[1])
    if y.is_floating_point() or y.shape != (len(x),):
        raise DataError(
            f"y is {y.dtype} of shape {tuple(y.shape)}; give a whole number for each of the "
            f"{len(x)} data, -1 where the class is not known"
        )
    return x, y


def _options(x: Tensor, y: Int[Tensor, " num_data"], chosen: dict[str, Any]) -> dict[str, Any]:
    """The chosen options, with what suits the data for the others."""
    known = int((y >= 0).sum())
    found = suited(x, chosen, default_likelihood)
    if "num_classes" not in chosen:
        if not known:
            raise OptionError("no label is known, so that the classes are not; give num_classes")
        found["num_classes"] = max(2, int(y.max()) + 1)
    if chosen.get("objective") is None:
        found["objective"] = _objective(ALPHA * len(y) / max(known, 1))
    return found


def _started(pair: Pair, x: Tensor, y: Tensor) -> Pair:
    pair.model.to(x)
    pair.guide.to(x)
    model = cast(SemiSupervisedVAE, pair.model)
    model.check(x[:1], y[:1].to(x.device))
    model.initialize(x)
    return pair


@register("semi_supervised_vae", semi_supervised_vae, _data_and_labels)
def _semi_supervised_vae_for(data: tuple[Tensor, Tensor], **chosen: Any) -> Pair:
    x, y = data
    return _started(semi_supervised_vae(x.shape[1], **_options(x, y, chosen)), x, y)


@register(
    "semi_supervised_stick_breaking_vae", semi_supervised_stick_breaking_vae, _data_and_labels
)
def _semi_supervised_stick_breaking_vae_for(data: tuple[Tensor, Tensor], **chosen: Any) -> Pair:
    x, y = data
    options = _options(x, y, chosen)
    return _started(semi_supervised_stick_breaking_vae(x.shape[1], **options), x, y)

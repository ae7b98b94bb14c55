"""A variational autoencoder with classes, of which some are known."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float, Int, Shaped
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_models.codes import Code, NormalCode
from pyro_models.errors import OptionError
from pyro_models.labels import as_labels, check_labels
from pyro_models.likelihoods import Bernoulli, Likelihood
from pyro_models.likelihoods.parts import check_data, require_likelihood, start_at_mean
from pyro_models.networks import MLP, as_batch
from pyro_models.options import positive_int
from pyro_models.programs import announce, data_plate


@final
@dataclass(frozen=True)
class LearnedWeights:
    """Class probabilities are parameters of the model, equal at first."""


@final
class SemiSupervisedVAE(nn.Module):
    r"""A code and a class beside it, both of which the decoder sees; some classes are known.

    .. math::
        y_n \sim \mathrm{Categorical}(\rho), \qquad c_n \sim p(c), \qquad
        x_n \mid c_n, y_n \sim p\big(x \mid \mathrm{decoder}([c_n, \mathrm{onehot}(y_n)])\big)

    for n = 1, ..., N. With the standard normal code z this is the model M2 of Kingma et al.; with
    sticks v, of which the decoder sees the weights :math:`\pi(v)`, the semi-supervised form of
    Nalisnick and Smyth. What the class says of x, the code need not.

    Sites, all in the plate ``"data"`` and the same whatever is known: those of Pyro's ``obs_mask``
    for the class, ``"y_observed"`` (counted where the label is known), ``"y_unobserved"`` (a
    latent, counted where it is not) and the deterministic ``"y"``; the code's latent, ``"z"`` or
    ``"v"``; and the observed ``"x"``.

    Args:
        data_dim: Numbers a datum; images are flattened.
        num_classes: Number of classes, at least 2.
        code: ``codes.NormalCode(latent_dim)``, of dimension 2 if not given, or
            ``codes.StickCode(truncation)``.
        hidden: Widths of the decoder's hidden layers.
        likelihood: What the decoder's outputs mean; ``Bernoulli()`` if not given.
        activation: Class of the decoder's activation.
        weights: Class probabilities :math:`\rho`, ``(num_classes,)``, that stay; or
            ``LearnedWeights()``. Equal if not given.

    Raises:
        OptionError: If an option has no meaning, or does not go with another.

    References:
        Kingma et al. 2014, "Semi-Supervised Learning with Deep Generative Models",
        https://arxiv.org/abs/1406.5298
        Nalisnick and Smyth 2017, section 5 of https://arxiv.org/abs/1605.06197

    Example:
        >>> model = SemiSupervisedVAE(data_dim=64, num_classes=10)
        >>> model(y=torch.tensor([3, 3, -1])).shape  # simulate two threes and anything
        torch.Size([3, 64])
        >>> x, y = torch.zeros(2, 64), torch.tensor([5, -1])
        >>> trace = pyro.poutine.trace(model).get_trace(x, y, num_data=1797)  # condition
        >>> [n for n in trace.stochastic_nodes if n != "data"], trace.nodes["y"]["value"][0]
        (['y_unobserved', 'z'], tensor(5))
    """

    class_logits: Tensor

    def __init__(
        self,
        data_dim: int,
        num_classes: int,
        code: Code = NormalCode(2),  # noqa: B008 (immutable)
        hidden: Sequence[int] = (200,),
        likelihood: Likelihood | None = None,
        activation: type[nn.Module] = nn.Tanh,
        weights: Float[Tensor, " classes"] | LearnedWeights | None = None,
    ) -> None:
        super().__init__()
        self.data_dim = positive_int("data_dim", data_dim)
        self.num_classes = positive_int("num_classes", num_classes)
        if num_classes < 2:
            raise OptionError("num_classes=1 leaves no class to tell apart; give at least 2")
        if not isinstance(code, Code):
            raise OptionError(f"code={code!r} is none; give one of pyro_models.codes")
        self.code = code
        self.likelihood = Bernoulli() if likelihood is None else likelihood
        require_likelihood(self.likelihood, data_dim)
        self.outputs = data_dim * self.likelihood.outputs_per_dim
        self.decoder = MLP(code.width + num_classes, hidden, self.outputs, activation)
        if isinstance(weights, LearnedWeights):
            self.class_logits = nn.Parameter(torch.zeros(num_classes))
        else:
            self.register_buffer("class_logits", _logits(weights, num_classes))

    @property
    def weights(self) -> Float[Tensor, " classes"]:
        """The classes' probabilities, ``(num_classes,)``."""
        return self.class_logits.softmax(-1)

    def forward(
        self,
        x: Shaped[Tensor, "batch *datum"] | None = None,
        y: Int[Tensor, " batch"] | None = None,
        num_data: int | None = None,
    ) -> Shaped[Tensor, "*lead data_dim"]:
        """The Pyro program: simulate data, of given classes or any, or condition on them.

        Args:
            x: A minibatch, ``(batch, data_dim)`` or images; ``None`` simulates.
            y: Labels, ``(batch,)``, -1 where unknown; ``None`` if none is known.
            num_data: Size N of the whole set, by which a minibatch is scaled; without data and
                labels, how many to simulate (1 if not given).

        Returns:
            The data, ``(batch, data_dim)``.

        Raises:
            DataError: If shape, type or device of ``x`` or ``y`` do not fit.
        """
        announce(self, "model")
        like = self.decoder.output_bias
        if x is not None:
            x = as_batch(x, self.data_dim, like)
        given = y if x is None else x
        batch = (1 if num_data is None else num_data) if given is None else len(given)
        labels = as_labels(y, batch, like.device)
        with data_plate(batch, num_data, like.device):
            fn = dist.Categorical(logits=self.class_logits)
            # Where a label is unknown any class may stand: it is masked.
            known: Any = labels >= 0
            label = pyro.sample("y", fn, obs=labels.clamp(min=0), obs_mask=known)
            latent = pyro.sample(self.code.site, self.code.prior(like))
            return pyro.sample("x", self._likelihood(self.code.features(latent), label, x), obs=x)

    def _likelihood(
        self, code: Float[Tensor, "*lead width"], y: Int[Tensor, "..."], x: Tensor | None
    ) -> TorchDistributionMixin:
        return self.likelihood(self.decoder.beside_one_hot(code, y), x)

    def decode(
        self, code: Float[Tensor, "*lead width"], y: Int[Tensor, "..."]
    ) -> TorchDistributionMixin:
        """The distribution p(x | code, y), of event shape ``(data_dim,)``.

        Args:
            code: What the decoder sees of codes, ``(..., code.width)``.
            y: Classes, of a shape that broadcasts with ``(...)``.

        Example:
            >>> model = SemiSupervisedVAE(data_dim=64, num_classes=10)
            >>> one_style = torch.zeros(1, 2)
            >>> model.decode(one_style, torch.arange(10)).mean.shape  # in every class
            torch.Size([10, 64])
        """
        return self._likelihood(code, y, None)

    def check(
        self,
        x: Shaped[Tensor, "num_data *datum"],
        y: Int[Tensor, " num_data"] | None = None,
    ) -> None:
        """Refuse data that the model cannot explain, once before a fit.

        Args:
            x: Data, ``(num_data, data_dim)`` or images.
            y: Labels, -1 where unknown.

        Raises:
            DataError: If shapes, types or devices do not fit, a value is NaN or infinite, or a
                label is of no class.
            SupportError: If a value lies outside the likelihood's support.
        """
        bias = self.decoder.output_bias
        check_data(self.likelihood, x, self.data_dim, bias)
        check_labels(as_labels(y, len(x), bias.device), self.num_classes)

    def initialize(self, x: Shaped[Tensor, "num_data *datum"]) -> None:
        """Set the decoder's output bias so that it starts at the mean of the data.

        Args:
            x: Training data, ``(num_data, data_dim)`` or images.

        Raises:
            DataError: If shape, type or device of ``x`` do not fit.
        """
        start_at_mean(self.decoder.output_bias, self.likelihood, x, self.data_dim)


def _logits(weights: Tensor | None, num_classes: int) -> Float[Tensor, " classes"]:
    if weights is None:
        return torch.zeros(num_classes)
    if weights.shape != (num_classes,) or not bool((weights.isfinite() & (weights > 0)).all()):
        raise OptionError(
            f"weights={weights!r} are no probabilities of {num_classes} classes; give "
            f"{num_classes} positive numbers, or LearnedWeights()"
        )
    share = weights.detach().double()
    return (share / share.sum()).log().to(torch.get_default_dtype())

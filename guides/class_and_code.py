"""The inference side of a semi-supervised autoencoder: a classifier, and an encoder given it."""

from collections.abc import Sequence
from typing import Any, final

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float, Int, Shaped
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from guides.amortized_sticks import start_near_zero
from guides.code_posteriors import CodePosterior, NormalCodePosterior
from pyro_models.errors import DataError, OptionError
from pyro_models.labels import as_labels
from pyro_models.networks import MLP, as_batch
from pyro_models.options import positive_int
from pyro_models.programs import announce, data_plate


@final
class AmortizedClassAndCode(nn.Module):
    r"""A class read off the datum where it is not known, and a code read off datum and class.

    .. math::
        q(y_n, c_n \mid x_n) = q(y_n \mid x_n)\, q(c_n \mid x_n, y_n), \qquad
        q(y_n \mid x_n) = \mathrm{Categorical}\big(\mathrm{softmax}\,
        \mathrm{classifier}(x_n)\big)

    Sites: ``"y_unobserved"``, masked where the label is known, and the code's, ``"z"`` or ``"v"``,
    both in the plate ``"data"``.

    Args:
        data_dim: Numbers a datum; images are flattened.
        num_classes: Number of classes.
        code: The code's posterior: ``NormalCodePosterior(latent_dim)``, of dimension 2 if not
            given, or ``StickCodePosterior(truncation)``.
        hidden: Widths of the hidden layers of both networks.
        activation: Class of both networks' activation.
        preprocess: Module between the data and the networks, such as ``networks.Standardize(x)``
            for data of another size than 1; by default they see the data as they are.

    Raises:
        OptionError: If an option has no meaning.

    References:
        Kingma et al. 2014, https://arxiv.org/abs/1406.5298

    Example:
        >>> guide = AmortizedClassAndCode(data_dim=64, num_classes=10)
        >>> guide(torch.zeros(3, 64), torch.tensor([5, -1, -1])).shape
        torch.Size([3, 2])
        >>> guide.classify(torch.zeros(3, 64)).shape
        torch.Size([3, 10])
    """

    def __init__(
        self,
        data_dim: int,
        num_classes: int,
        code: CodePosterior = NormalCodePosterior(2),  # noqa: B008 (immutable)
        hidden: Sequence[int] = (200,),
        activation: type[nn.Module] = nn.Tanh,
        preprocess: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.data_dim = positive_int("data_dim", data_dim)
        self.num_classes = positive_int("num_classes", num_classes)
        if not isinstance(code, CodePosterior):
            raise OptionError(f"code={code!r} is none; give guides.NormalCodePosterior(latent_dim)")
        self.code = code
        self.preprocess = nn.Identity() if preprocess is None else preprocess
        self.classifier = MLP(data_dim, hidden, num_classes, activation)
        self.encoder = MLP(data_dim + num_classes, hidden, code.outputs, activation)
        if code.starts_small:
            start_near_zero(self.encoder)

    def forward(
        self,
        x: Shaped[Tensor, "batch *datum"] | None = None,
        y: Int[Tensor, " batch"] | None = None,
        num_data: int | None = None,
    ) -> Float[Tensor, "*lead code"]:
        """The Pyro program: draw a class and a code for each datum.

        Args:
            x: A minibatch, ``(batch, data_dim)`` or images.
            y: Labels, ``(batch,)``, -1 where unknown; ``None`` if none is known.
            num_data: Size N of the whole set, by which a minibatch is scaled.

        Returns:
            The codes.

        Raises:
            DataError: If there is no ``x``, or shape, type or device of ``x`` or ``y`` do not fit.
        """
        announce(self, "guide")
        if x is None:
            raise DataError("the guide infers class and code from data and got none; give x")
        rows = as_batch(x, self.data_dim, self.encoder.output_bias)
        labels = as_labels(y, len(rows), rows.device)
        known: Any = labels >= 0
        with data_plate(len(rows), num_data, rows.device):
            with poutine.mask(mask=~known):
                guess = pyro.sample("y_unobserved", self.class_posterior(rows))
            label = torch.where(known, labels, guess)
            return pyro.sample(self.code.site, self.posterior(rows, label))

    def class_posterior(self, x: Float[Tensor, "*lead data_dim"]) -> dist.Categorical:
        """The distribution q(y | x), of batch shape ``(...)``.

        Args:
            x: Data, ``(..., data_dim)``, in the parameters' type.
        """
        return dist.Categorical(logits=self.classifier(self.preprocess(x)))

    def posterior(
        self, x: Float[Tensor, "*lead data_dim"], y: Int[Tensor, "..."]
    ) -> TorchDistributionMixin:
        """The distribution q(code | x, y).

        Args:
            x: Data, ``(..., data_dim)``, in the parameters' type.
            y: Classes, of a shape that broadcasts with ``(...)``.
        """
        return self.code.distribution(self.encoder.beside_one_hot(self.preprocess(x), y))

    def classify(self, x: Shaped[Tensor, "batch *datum"]) -> Float[Tensor, "batch classes"]:
        """Class probabilities q(y | x), ``(batch, num_classes)``.

        Args:
            x: Data, ``(batch, data_dim)`` or images.

        Raises:
            DataError: If shape, type or device do not fit.
        """
        return self.class_posterior(as_batch(x, self.data_dim, self.encoder.output_bias)).probs

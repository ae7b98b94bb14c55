"""A VAE with a class of which half is known, by everyone: M2, and the same with sticks."""

import math
from dataclasses import dataclass
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from harness.timing import Contender
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from torch import Tensor, nn
from torch.nn import functional as F

from contenders import hand_written, ours, sticks, stock_pyro
from contenders.problems import Layer, layers, network, pictures, to_device
from pyro_models import pairs
from pyro_models.infer import ELBO, Supervised

Batch = tuple[Tensor, Tensor]
"""Data and labels, -1 where a label is not known."""


class NormalCode:
    """z of M2: standard normal, its posterior a location and the softplus of a raw scale."""

    site, activation = "z", nn.Tanh

    def outputs(self, latent_dim: int) -> int:
        """Numbers that the encoder gives."""
        return 2 * latent_dim

    def prior(self, like: Tensor, latent_dim: int) -> dist.Distribution:
        """Of one datum."""
        return dist.Normal(like.new_zeros(latent_dim), like.new_ones(latent_dim)).to_event(1)

    def posterior(self, outputs: Tensor) -> dist.Distribution:
        """As Pyro's tutorials have it."""
        loc, raw = outputs.chunk(2, -1)
        return dist.Normal(loc, F.softplus(raw)).to_event(1)

    def features(self, value: Tensor) -> Tensor:
        """What the decoder sees."""
        return value

    def draw(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """A draw by hand, and each datum's KL divergence, here in closed form."""
        loc, raw = outputs.chunk(2, -1)
        scale = F.softplus(raw)
        divergence = (0.5 * (loc.square() + scale.square() - 1) - scale.log()).sum(-1)
        return loc + scale * torch.randn_like(loc), divergence


class StickCode:
    """Fractions v of Nalisnick and Smyth, as in ``contenders.sticks``."""

    site, activation, concentration = "v", nn.ReLU, 5.0

    def outputs(self, latent_dim: int) -> int:
        """Numbers that the encoder gives, for sticks of so many pieces."""
        return 2 * (latent_dim - 1)

    def prior(self, like: Tensor, latent_dim: int) -> dist.Distribution:
        """Of one datum."""
        one = like.new_ones(latent_dim - 1)
        return dist.Beta(one, self.concentration * one).to_event(1)

    def posterior(self, outputs: Tensor) -> dist.Distribution:
        """Stock's Kumaraswamy, clipped."""
        a, b = (F.softplus(outputs) + sticks.LEAST).chunk(2, -1)
        return sticks.ClippedKumaraswamy(a, b).to_event(1)

    def features(self, value: Tensor) -> Tensor:
        """The pieces."""
        return sticks.broken(value)

    def draw(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """A draw by hand, and log q - log p of it."""
        a, b = (F.softplus(outputs) + sticks.LEAST).chunk(2, -1)
        return sticks.draw(a, b, self.concentration)


@dataclass(frozen=True)
class SemiSupervisedProblem:
    """Kingma et al. (2014), or Nalisnick and Smyth (2017), of zeros and ones, by Adam.

    The likelihood is Bernoulli, and class probabilities are equal.

    Args:
        classifier: Layers from data to logits of the class.
        encoder: Layers from data and one-hot class to the raw parameters of the code.
        decoder: Layers from what it sees of the code, and one-hot class, to logits of the pixels.
        batches: Minibatches.
        alpha: Weight of the classifier's log-likelihood, for each labelled datum.
        lr: Learning rate.
        code: What kind of code.
    """

    classifier: tuple[Layer, ...]
    encoder: tuple[Layer, ...]
    decoder: tuple[Layer, ...]
    batches: tuple[Batch, ...]
    alpha: float
    lr: float
    code: NormalCode | StickCode

    @property
    def num_classes(self) -> int:
        """How many classes."""
        return len(self.classifier[-1][1])

    @property
    def latent_dim(self) -> int:
        """Numbers of the code that the decoder sees."""
        return self.decoder[0][0].shape[1] - self.num_classes

    @property
    def hidden(self) -> tuple[int, ...]:
        """Widths of the encoder's hidden layers; the decoder's are the reverse."""
        return tuple(len(bias) for _, bias in self.encoder[:-1])


def semi_supervised_problem(
    data_dim: int = 784,
    hidden: tuple[int, ...] = (200,),
    latent_dim: int = 50,
    num_classes: int = 10,
    batch_size: int = 20,
    *,
    device: torch.device,
    num_batches: int = 50,
    alpha: float = 1.0,
    lr: float = 1e-3,
    code: NormalCode | StickCode = NormalCode(),  # noqa: B008
) -> SemiSupervisedProblem:
    """Random weights, pictures and classes; of every batch the first half is labelled."""
    generator = torch.Generator().manual_seed(0)
    sizes = {
        "classifier": (data_dim, *hidden, num_classes),
        "encoder": (data_dim + num_classes, *hidden, code.outputs(latent_dim)),
        "decoder": (latent_dim + num_classes, *reversed(hidden), data_dim),
    }
    networks = {key: to_device(layers(one, generator), device) for key, one in sizes.items()}
    if isinstance(code, StickCode):  # as in `sticks_problem`
        *first, (weight, _) = networks["encoder"]
        last = (0.1 * weight, sticks.start_bias(latent_dim).to(device))
        networks["encoder"] = (*first, last)
    y = torch.randint(num_classes, (num_batches, batch_size), generator=generator)
    y[:, batch_size // 2 :] = -1
    x = pictures(num_batches, batch_size, data_dim, generator, device)
    batches = tuple(zip(x, y.to(device), strict=True))
    return SemiSupervisedProblem(batches=batches, alpha=alpha, lr=lr, code=code, **networks)


class Networks(nn.Module):
    """Classifier, encoder and decoder."""

    def __init__(self, problem: SemiSupervisedProblem):
        super().__init__()
        activation = problem.code.activation
        self.classifier = network(problem.classifier, activation)
        self.encoder = network(problem.encoder, activation)
        self.decoder = network(problem.decoder, activation)
        self.code = problem.code
        self.num_classes = problem.num_classes

    def join(self, rows: Tensor, y: Tensor) -> Tensor:
        """Rows with one-hot classes beside them; enumerated classes come on the left."""
        one_hot = F.one_hot(y, self.num_classes).to(rows.dtype)
        shape = torch.broadcast_shapes(rows.shape[:-1], one_hot.shape[:-1])
        return torch.cat([rows.expand(*shape, -1), one_hot.expand(*shape, -1)], -1)

    def posterior(self, x: Tensor, y: Tensor) -> dist.Distribution:
        return self.code.posterior(self.encoder(self.join(x, y)))

    def logits(self, value: Tensor, y: Tensor) -> Tensor:
        return self.decoder(self.join(self.code.features(value), y))


Programs = tuple[stock_pyro.Program, stock_pyro.Program]


def programs(problem: SemiSupervisedProblem) -> Programs:
    """All data in one plate, the class by Pyro's ``obs_mask``: the package's program."""
    net, code = Networks(problem), problem.code
    even = torch.zeros(problem.num_classes, device=problem.batches[0][0].device)

    def model(batch: Batch) -> None:
        pyro.module("networks", net)
        x, labels = batch
        known = labels >= 0
        with pyro.plate("data", len(x)):
            fn = dist.Categorical(logits=even)
            y = pyro.sample("y", fn, obs=labels.clamp(min=0), obs_mask=known)
            z = pyro.sample(code.site, code.prior(x, problem.latent_dim))
            pyro.sample("x", dist.Bernoulli(logits=net.logits(z, y)).to_event(1), obs=x)
            with poutine.mask(mask=known), poutine.scale(scale=problem.alpha):
                guess = dist.Categorical(logits=net.classifier(x))
                pyro.sample("classified", guess, obs=labels.clamp(min=0))

    def guide(batch: Batch) -> None:
        pyro.module("networks", net)
        x, labels = batch
        known = labels >= 0
        with pyro.plate("data", len(x)):
            with poutine.mask(mask=~known):
                guess = dist.Categorical(logits=net.classifier(x))
                drawn = pyro.sample("y_unobserved", guess, infer={"enumerate": "parallel"})
            pyro.sample(code.site, net.posterior(x, torch.where(known, labels, drawn)))

    return model, guide


def programs_apart(problem: SemiSupervisedProblem) -> Programs:
    """Labelled and unlabelled data each in a plate, so that known classes are not enumerated."""
    net, code = Networks(problem), problem.code
    even = torch.zeros(problem.num_classes, device=problem.batches[0][0].device)

    def part(name: str, x: Tensor, labels: Tensor | None) -> None:
        with pyro.plate(f"data_{name}", len(x)):
            y = pyro.sample(f"y_{name}", dist.Categorical(logits=even), obs=labels)
            z = pyro.sample(f"code_{name}", code.prior(x, problem.latent_dim))
            logits = net.logits(z, y)
            pyro.sample(f"x_{name}", dist.Bernoulli(logits=logits).to_event(1), obs=x)
            if labels is not None:
                with poutine.scale(scale=problem.alpha):
                    guess = dist.Categorical(logits=net.classifier(x))
                    pyro.sample("classified", guess, obs=labels)

    def model(batch: Batch) -> None:
        pyro.module("networks", net)
        x, labels = batch
        known = labels >= 0
        part("labelled", x[known], labels[known])
        part("unlabelled", x[~known], None)

    def guide(batch: Batch) -> None:
        pyro.module("networks", net)
        x, labels = batch
        known = labels >= 0
        with pyro.plate("data_labelled", int(known.sum())):
            pyro.sample("code_labelled", net.posterior(x[known], labels[known]))
        rest = x[~known]
        with pyro.plate("data_unlabelled", len(rest)):
            guess = dist.Categorical(logits=net.classifier(rest))
            y = pyro.sample("y_unlabelled", guess, infer={"enumerate": "parallel"})
            pyro.sample("code_unlabelled", net.posterior(rest, y))

    return model, guide


class SemiSupervisedLoss(nn.Module):
    """Minus the bound per datum, less alpha times the classifier's log-likelihood.

    Labelled and unlabelled data go through the networks together, the latter with every class.
    """

    def __init__(self, problem: SemiSupervisedProblem):
        super().__init__()
        self.net = Networks(problem)
        self.alpha = problem.alpha

    def forward(self, batch: Batch) -> Tensor:
        x, labels = batch
        known = labels >= 0
        x_known, x_rest, y = x[known], x[~known], labels[known]
        classes = self.net.num_classes
        log_q = F.log_softmax(self.net.classifier(torch.cat([x_known, x_rest])), -1)
        log_q_known, log_q_rest = log_q.split([len(x_known), len(x_rest)])
        rows = torch.cat([x_known, x_rest.repeat(classes, 1)])
        each = torch.arange(classes, device=x.device).repeat_interleave(len(x_rest))
        y_rows = torch.cat([y, each])
        value, divergence = self.net.code.draw(self.net.encoder(self.net.join(rows, y_rows)))
        logits = self.net.logits(value, y_rows)
        cost = F.binary_cross_entropy_with_logits(logits, rows, reduction="none").sum(-1)
        cost = cost + divergence + math.log(classes)
        cost_known, cost_rest = cost.split([len(x_known), len(each)])
        q_rest = log_q_rest.exp()
        expected = q_rest * (cost_rest.view(classes, -1).T + log_q_rest)
        classified = F.nll_loss(log_q_known, y, reduction="sum")
        return (cost_known.sum() + expected.sum() + self.alpha * classified) / len(x)


def our_pair(problem: SemiSupervisedProblem) -> ours.Start:
    """The package's pair, with the problem's initial values."""
    x = problem.batches[0][0]
    sizes = {"num_classes": problem.num_classes, "hidden": problem.hidden}
    encoder = problem.encoder
    if isinstance(problem.code, StickCode):
        pair = pairs.semi_supervised_stick_breaking_vae(
            x.shape[1],
            truncation=problem.latent_dim,
            concentration=problem.code.concentration,
            **sizes,
        )
        # The package's family adds the bias of the start itself.
        weight, bias = encoder[-1]
        encoder = (*encoder[:-1], (weight, bias - sticks.start_bias(problem.latent_dim).to(bias)))
    else:
        pair = pairs.semi_supervised_vae(x.shape[1], latent_dim=problem.latent_dim, **sizes)
    ours.set_layers(pair.guide.classifier, problem.classifier)
    ours.set_layers(pair.guide.encoder, encoder)
    ours.set_layers(pair.model.decoder, problem.decoder)
    pair.model.to(x.device)
    pair.guide.to(x.device)
    objective = Supervised(ELBO(summed=("y_unobserved",)), "y", problem.alpha)
    return pair.model, pair.guide, objective


def contenders(problem: SemiSupervisedProblem, device: torch.device) -> list[Contender]:
    """Stock Pyro, hand-written eager, ours."""
    enumerate_ = partial(TraceEnum_ELBO, max_plate_nesting=1)
    entries: list[stock_pyro.Entry] = [
        ("`TraceEnum_ELBO`", partial(programs, problem), enumerate_),
        ("`TraceEnum_ELBO`, labelled apart", partial(programs_apart, problem), enumerate_),
    ]
    batches, lr = problem.batches, problem.lr
    return [
        *stock_pyro.rows(entries, batches, lr, len(batches[0][0])),
        *hand_written.eager_rows(partial(SemiSupervisedLoss, problem), batches, lr),
        *ours.rows(partial(our_pair, problem), batches, lr, "the package's pair"),
    ]

"""M2, a VAE with a class of which half is known, by everyone."""

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

from contenders import hand_written, ours, stock_pyro
from contenders.problems import Layer, layers, network, pictures, to_device
from pyro_models import pairs
from pyro_models.infer import ELBO, Supervised

Batch = tuple[Tensor, Tensor]
"""Data and labels, -1 where a label is not known."""


@dataclass(frozen=True)
class SemiSupervisedProblem:
    """M2 of Kingma et al. (2014): tanh, Bernoulli likelihood, equal class probabilities, Adam.

    Args:
        classifier: Layers from data to logits of the class.
        encoder: Layers from data and one-hot class to (location, raw scale) of z.
        decoder: Layers from z and one-hot class to logits of the pixels.
        batches: Minibatches.
        alpha: Weight of the classifier's log-likelihood, for each labelled datum.
        lr: Learning rate.
    """

    classifier: tuple[Layer, ...]
    encoder: tuple[Layer, ...]
    decoder: tuple[Layer, ...]
    batches: tuple[Batch, ...]
    alpha: float
    lr: float

    @property
    def num_classes(self) -> int:
        """How many classes."""
        return len(self.classifier[-1][1])

    @property
    def latent_dim(self) -> int:
        """Dimension of z."""
        return len(self.encoder[-1][1]) // 2

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
) -> SemiSupervisedProblem:
    """Random weights, pictures and classes; of every batch the first half is labelled."""
    generator = torch.Generator().manual_seed(0)
    sizes = {
        "classifier": (data_dim, *hidden, num_classes),
        "encoder": (data_dim + num_classes, *hidden, 2 * latent_dim),
        "decoder": (latent_dim + num_classes, *reversed(hidden), data_dim),
    }
    networks = {key: to_device(layers(one, generator), device) for key, one in sizes.items()}
    y = torch.randint(num_classes, (num_batches, batch_size), generator=generator)
    y[:, batch_size // 2 :] = -1
    x = pictures(num_batches, batch_size, data_dim, generator, device)
    batches = tuple(zip(x, y.to(device), strict=True))
    return SemiSupervisedProblem(batches=batches, alpha=alpha, lr=lr, **networks)


class Networks(nn.Module):
    """Classifier, encoder and decoder."""

    def __init__(self, problem: SemiSupervisedProblem):
        super().__init__()
        self.classifier = network(problem.classifier)
        self.encoder = network(problem.encoder)
        self.decoder = network(problem.decoder)
        self.num_classes = problem.num_classes

    def join(self, rows: Tensor, y: Tensor) -> Tensor:
        """Rows with one-hot classes beside them; enumerated classes come on the left."""
        one_hot = F.one_hot(y, self.num_classes).to(rows.dtype)
        shape = torch.broadcast_shapes(rows.shape[:-1], one_hot.shape[:-1])
        return torch.cat([rows.expand(*shape, -1), one_hot.expand(*shape, -1)], -1)

    def posterior(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        loc, raw = self.encoder(self.join(x, y)).chunk(2, -1)
        return loc, F.softplus(raw)

    def logits(self, z: Tensor, y: Tensor) -> Tensor:
        return self.decoder(self.join(z, y))


Programs = tuple[stock_pyro.Program, stock_pyro.Program]


def programs(problem: SemiSupervisedProblem) -> Programs:
    """All data in one plate, the class by Pyro's ``obs_mask``: the package's program."""
    net = Networks(problem)
    zero = torch.zeros(problem.latent_dim, device=problem.batches[0][0].device)
    even = torch.zeros(problem.num_classes, device=zero.device)

    def model(batch: Batch) -> None:
        pyro.module("networks", net)
        x, labels = batch
        known = labels >= 0
        with pyro.plate("data", len(x)):
            fn = dist.Categorical(logits=even)
            y = pyro.sample("y", fn, obs=labels.clamp(min=0), obs_mask=known)
            z = pyro.sample("z", dist.Normal(zero, torch.ones_like(zero)).to_event(1))
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
            loc, scale = net.posterior(x, torch.where(known, labels, drawn))
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    return model, guide


def programs_apart(problem: SemiSupervisedProblem) -> Programs:
    """Labelled and unlabelled data each in a plate, so that known classes are not enumerated."""
    net = Networks(problem)
    zero = torch.zeros(problem.latent_dim, device=problem.batches[0][0].device)
    even = torch.zeros(problem.num_classes, device=zero.device)

    def part(name: str, x: Tensor, labels: Tensor | None) -> None:
        with pyro.plate(f"data_{name}", len(x)):
            y = pyro.sample(f"y_{name}", dist.Categorical(logits=even), obs=labels)
            prior = dist.Normal(zero, torch.ones_like(zero)).to_event(1)
            z = pyro.sample(f"z_{name}", prior)
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
            loc, scale = net.posterior(x[known], labels[known])
            pyro.sample("z_labelled", dist.Normal(loc, scale).to_event(1))
        rest = x[~known]
        with pyro.plate("data_unlabelled", len(rest)):
            guess = dist.Categorical(logits=net.classifier(rest))
            y = pyro.sample("y_unlabelled", guess, infer={"enumerate": "parallel"})
            loc, scale = net.posterior(rest, y)
            pyro.sample("z_unlabelled", dist.Normal(loc, scale).to_event(1))

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
        loc, scale = self.net.posterior(rows, y_rows)
        z = loc + scale * torch.randn_like(loc)
        logits = self.net.logits(z, y_rows)
        cost = F.binary_cross_entropy_with_logits(logits, rows, reduction="none").sum(-1)
        cost = cost + (0.5 * (loc.square() + scale.square() - 1) - scale.log()).sum(-1)
        cost = cost + math.log(classes)
        cost_known, cost_rest = cost.split([len(x_known), len(each)])
        q_rest = log_q_rest.exp()
        expected = q_rest * (cost_rest.view(classes, -1).T + log_q_rest)
        classified = F.nll_loss(log_q_known, y, reduction="sum")
        return (cost_known.sum() + expected.sum() + self.alpha * classified) / len(x)


def our_pair(problem: SemiSupervisedProblem) -> ours.Start:
    """The package's pair, with the problem's initial values."""
    x = problem.batches[0][0]
    pair = pairs.semi_supervised_vae(
        x.shape[1],
        num_classes=problem.num_classes,
        latent_dim=problem.latent_dim,
        hidden=problem.hidden,
    )
    ours.set_layers(pair.guide.classifier, problem.classifier)
    ours.set_layers(pair.guide.encoder, problem.encoder)
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

"""The stick-breaking VAE with Kumaraswamy fractions, by everyone."""

import math
from dataclasses import dataclass
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from harness.timing import Contender
from pyro.infer import JitTrace_ELBO, Trace_ELBO
from torch import Tensor, nn
from torch.nn import functional as F

from contenders import hand_written, ours, stock_pyro
from contenders.problems import Layer, layers, network, pictures, to_device
from pyro_models import pairs

LEAST = 1e-2
"""A concentration is softplus of the encoder's output plus this, for everyone."""

START = (1.0, 5.0)
"""Concentrations (a, b) that the encoder's output bias starts at: those of the prior."""


@dataclass(frozen=True)
class SticksProblem:
    """A stick-breaking VAE: ReLU, Bernoulli likelihood, fractions v ~ Beta(1, concentration), Adam.

    Args:
        encoder: Layers from data to the raw concentrations of v: all a, then all b.
        decoder: Layers from the sticks' lengths to logits of the pixels.
        batches: Minibatches, each ``(batch, data_dim)``, of zeros and ones.
        concentration: Of the prior.
        lr: Learning rate.
    """

    encoder: tuple[Layer, ...]
    decoder: tuple[Layer, ...]
    batches: tuple[Tensor, ...]
    concentration: float
    lr: float

    @property
    def truncation(self) -> int:
        """Pieces of the stick, the remainder among them."""
        return self.decoder[0][0].shape[1]

    @property
    def hidden(self) -> tuple[int, ...]:
        """Widths of the encoder's hidden layers; the decoder's are the reverse."""
        return tuple(len(bias) for _, bias in self.encoder[:-1])


def sticks_problem(
    data_dim: int = 784,
    hidden: tuple[int, ...] = (500,),
    truncation: int = 50,
    batch_size: int = 20,
    *,
    device: torch.device,
    num_batches: int = 50,
    lr: float = 1e-3,
) -> SticksProblem:
    """Random weights and random pictures."""
    generator = torch.Generator().manual_seed(0)
    encoder = layers((data_dim, *hidden, 2 * (truncation - 1)), generator)
    weight, _ = encoder[-1]
    # A tenth, so that the posterior starts near the prior, as the package has it.
    encoder = (*encoder[:-1], (0.1 * weight, start_bias(truncation)))
    decoder = layers((truncation, *reversed(hidden), data_dim), generator)
    return SticksProblem(
        encoder=to_device(encoder, device),
        decoder=to_device(decoder, device),
        batches=pictures(num_batches, batch_size, data_dim, generator, device),
        concentration=5.0,
        lr=lr,
    )


def start_bias(truncation: int) -> Tensor:
    """What softplus, plus ``LEAST``, makes ``START`` of."""
    start = torch.tensor(START, dtype=torch.float64) - LEAST
    return start.expm1().log().float().repeat_interleave(truncation - 1)


class ClippedKumaraswamy(dist.Kumaraswamy):
    """Stock's, clipped: its draws round to exactly 0 and 1, where log-densities are infinite.

    One such draw, likely where a concentration is small, and every parameter is NaN for good.
    """

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        eps = torch.finfo(self.concentration1.dtype).eps
        return super().rsample(sample_shape).clamp(eps, 1 - eps)


def broken(v: Tensor) -> Tensor:
    """Lengths of the pieces, as Pyro's tutorial of the Dirichlet process has them."""
    rest = (1 - v).cumprod(-1)
    return F.pad(v, (0, 1), value=1) * F.pad(rest, (1, 0), value=1)


def programs(
    problem: SticksProblem, kumaraswamy: type[dist.Kumaraswamy] = ClippedKumaraswamy
) -> tuple[stock_pyro.Program, stock_pyro.Program]:
    """As Pyro's tutorials of the VAE and of the Dirichlet process would be put together."""
    encoder = network(problem.encoder, nn.ReLU)
    decoder = network(problem.decoder, nn.ReLU)
    one = torch.ones(problem.truncation - 1, device=problem.batches[0].device)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            prior = dist.Beta(one, problem.concentration * one).expand([len(x), len(one)])
            v = pyro.sample("v", prior.to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(broken(v))).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            a, b = (F.softplus(encoder(x)) + LEAST).chunk(2, dim=-1)
            pyro.sample("v", kumaraswamy(a, b).to_event(1))

    return model, guide


class SticksLoss(nn.Module):
    """Minus the evidence lower bound per datum; the KL's value is drawn.

    The paper's series in closed form would be another loss, off by nats where b < 1; this is
    unbiased and costs less.
    """

    def __init__(self, problem: SticksProblem):
        super().__init__()
        self.encoder = network(problem.encoder, nn.ReLU)
        self.decoder = network(problem.decoder, nn.ReLU)
        self.concentration = problem.concentration

    def forward(self, x: Tensor) -> Tensor:
        a, b = (F.softplus(self.encoder(x)) + LEAST).chunk(2, dim=-1)
        v, divergence = draw(a, b, self.concentration)
        logits = self.decoder(broken(v))
        reconstruction = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        return (reconstruction + divergence.sum()) / len(x)


def draw(a: Tensor, b: Tensor, concentration: float) -> tuple[Tensor, Tensor]:
    """Fractions, and log q(v) - log p(v) of each datum, by hand."""
    eps = torch.finfo(a.dtype).eps
    log_u = torch.rand_like(a).clamp_min(eps).log() / b  # log(1 - v^a)
    v = (-torch.expm1(log_u)).clamp_min(eps).pow(1 / a).clamp(eps, 1 - eps)
    log_q = a.log() + b.log() + (a - 1) * v.log() + (b - 1) * log_u
    log_p = math.log(concentration) + (concentration - 1) * torch.log1p(-v)
    return v, (log_q - log_p).sum(-1)


def our_pair(problem: SticksProblem) -> ours.Start:
    """The package's pair, with the problem's initial values."""
    pair = pairs.stick_breaking_vae(
        problem.batches[0].shape[1],
        truncation=problem.truncation,
        hidden=problem.hidden,
        activation=nn.ReLU,
        concentration=problem.concentration,
    )
    # The package's family adds the bias of the start itself.
    weight, bias = problem.encoder[-1]
    last = (weight, bias - start_bias(problem.truncation).to(bias.device))
    ours.set_layers(pair.guide.encoder, (*problem.encoder[:-1], last))
    ours.set_layers(pair.model.decoder, problem.decoder)
    pair.model.to(problem.batches[0].device)
    pair.guide.to(problem.batches[0].device)
    return pair.model, pair.guide, pair.objective


def contenders(problem: SticksProblem, device: torch.device) -> list[Contender]:
    """Stock Pyro, hand-written eager, ours."""
    made = partial(programs, problem)
    entries: list[stock_pyro.Entry] = [
        ("`Trace_ELBO`", made, Trace_ELBO),
        ("`JitTrace_ELBO`", made, partial(JitTrace_ELBO, ignore_jit_warnings=True)),
    ]
    batches, lr = problem.batches, problem.lr
    return [
        *stock_pyro.rows(entries, batches, lr, len(batches[0])),
        *hand_written.eager_rows(partial(SticksLoss, problem), batches, lr),
        *ours.rows(partial(our_pair, problem), batches, lr, "the package's pair"),
    ]

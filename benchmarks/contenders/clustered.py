"""The Gaussian-mixture VAE and VaDE, by everyone."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from harness.timing import Contender
from pyro.infer import JitTraceEnum_ELBO, Trace_ELBO, TraceEnum_ELBO
from pyro.ops.indexing import Vindex
from torch import Tensor, nn
from torch.nn import functional as F

from contenders import hand_written, ours, stock_pyro
from contenders.problems import Layer, layers, network, pictures, to_device
from pyro_models import pairs

W_DIM = 2
UNIT = math.log(math.e - 1)
"""Softplus makes it 1."""


@dataclass(frozen=True)
class ClusteredProblem:
    """A VAE with a mixture of K normals as prior: tanh, Bernoulli likelihood, Adam.

    With w (GMVAE) the components are read off w by a network; without (VaDE) they are parameters,
    and so are the logits of their weights.

    Args:
        encoder: Layers from data to (location, raw scale) of w, if there is one, and then of z.
        decoder: Layers from z to logits of the pixels.
        components: Layers from w to the components' means and raw scales, ``(2, K, latent_dim)``;
            ``()`` for VaDE.
        means: Initial means of VaDE's components, ``(K, latent_dim)``; GMVAE has them in the bias.
        batches: Minibatches, each ``(batch, data_dim)``, of zeros and ones.
        lr: Learning rate.
    """

    encoder: tuple[Layer, ...]
    decoder: tuple[Layer, ...]
    components: tuple[Layer, ...]
    means: Tensor
    batches: tuple[Tensor, ...]
    lr: float

    @property
    def latent_dim(self) -> int:
        """Dimension of z."""
        return self.decoder[0][0].shape[1]

    @property
    def w_dim(self) -> int:
        """Dimension of w; 0 for VaDE."""
        return self.components[0][0].shape[1] if self.components else 0

    @property
    def hidden(self) -> tuple[int, ...]:
        """Widths of the encoder's hidden layers; the decoder's are the reverse."""
        return tuple(len(bias) for _, bias in self.encoder[:-1])


def clustered_problem(
    with_w: bool,
    data_dim: int = 784,
    hidden: tuple[int, ...] = (200,),
    latent_dim: int = 10,
    num_components: int = 10,
    batch_size: int = 20,
    *,
    device: torch.device,
    num_batches: int = 50,
    lr: float = 1e-3,
) -> ClusteredProblem:
    """Random weights and pictures; components start around random means, of scale 1."""
    generator = torch.Generator().manual_seed(0)
    w_dim = W_DIM if with_w else 0
    encoder = layers((data_dim, *hidden, 2 * (w_dim + latent_dim)), generator)
    decoder = layers((latent_dim, *reversed(hidden), data_dim), generator)
    means = torch.randn(num_components, latent_dim, generator=generator)
    components: tuple[Layer, ...] = ()
    if with_w:
        components = layers((w_dim, 100, 2 * means.numel()), generator)
        start = torch.stack([means, torch.full_like(means, UNIT)]).flatten()
        components = (*components[:-1], (components[-1][0], start))
    return ClusteredProblem(
        encoder=to_device(encoder, device),
        decoder=to_device(decoder, device),
        components=to_device(components, device),
        means=means.to(device),
        batches=pictures(num_batches, batch_size, data_dim, generator, device),
        lr=lr,
    )


class Networks(nn.Module):
    """What a datum's codes and the components are read off."""

    def __init__(self, problem: ClusteredProblem):
        super().__init__()
        self.encoder = network(problem.encoder)
        self.sizes = (problem.w_dim, problem.w_dim, problem.latent_dim, problem.latent_dim)
        self.shape = (2, *problem.means.shape)
        self.decoder = network(problem.decoder)
        if problem.components:
            self.components = network(problem.components)
            self.register_buffer("logits", torch.zeros_like(problem.means[:, 0]))
        else:
            self.logits = nn.Parameter(torch.zeros_like(problem.means[:, 0]))
            self.means = nn.Parameter(problem.means.clone())
            self.raw_scales = nn.Parameter(torch.full_like(problem.means, UNIT))

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        w_loc, w_raw, z_loc, z_raw = self.encoder(x).split(self.sizes, -1)
        return w_loc, F.softplus(w_raw), z_loc, F.softplus(z_raw)

    def prior(self, w: Tensor | None) -> tuple[Tensor, Tensor]:
        """Means and scales, ``(K, latent_dim)`` or with w ``(batch, K, latent_dim)``."""
        if w is None:
            return self.means, F.softplus(self.raw_scales)
        means, raw = self.components(w).unflatten(-1, self.shape).unbind(-3)
        return means, F.softplus(raw)


Programs = tuple[stock_pyro.Program, stock_pyro.Program]


def programs(problem: ClusteredProblem, enumerate_: str | None) -> Programs:
    """The component a site of both programs, the guide's posterior of it by Bayes' rule."""
    net = Networks(problem)
    infer = {"enumerate": enumerate_} if enumerate_ else {}

    def w_prior(x: Tensor) -> dist.Distribution:
        zero = torch.zeros(len(x), problem.w_dim, device=x.device)
        return dist.Normal(zero, torch.ones_like(zero)).to_event(1)

    def model(x: Tensor) -> None:
        pyro.module("networks", net)
        with pyro.plate("data", len(x)):
            w = pyro.sample("w", w_prior(x)) if problem.w_dim else None
            component = pyro.sample("component", dist.Categorical(logits=net.logits))
            means, scales = (Vindex(value)[..., component, :] for value in net.prior(w))
            z = pyro.sample("z", dist.Normal(means, scales).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=net.decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("networks", net)
        w_loc, w_scale, z_loc, z_scale = net.posterior(x)
        with pyro.plate("data", len(x)):
            w = None
            if problem.w_dim:
                w = pyro.sample("w", dist.Normal(w_loc, w_scale).to_event(1))
            z = pyro.sample("z", dist.Normal(z_loc, z_scale).to_event(1))
            code = dist.Normal(*net.prior(w)).to_event(1)
            logits = code.log_prob(z.unsqueeze(-2)) + net.logits  # (batch, K)
            pyro.sample("component", dist.Categorical(logits=logits), infer=infer)

    return model, guide


def marginal_programs(problem: ClusteredProblem) -> Programs:
    """The component summed out in the model by torch's mixture, where no guide is needed for it."""
    net = Networks(problem)

    def model(x: Tensor) -> None:
        pyro.module("networks", net)
        with pyro.plate("data", len(x)):
            w = None
            if problem.w_dim:
                zero = torch.zeros(len(x), problem.w_dim, device=x.device)
                w = pyro.sample("w", dist.Normal(zero, torch.ones_like(zero)).to_event(1))
            code = dist.Normal(*net.prior(w)).to_event(1)
            weights = dist.Categorical(logits=net.logits.expand(code.batch_shape))
            z = pyro.sample("z", dist.MixtureSameFamily(weights, code))
            pyro.sample("x", dist.Bernoulli(logits=net.decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("networks", net)
        w_loc, w_scale, z_loc, z_scale = net.posterior(x)
        with pyro.plate("data", len(x)):
            if problem.w_dim:
                pyro.sample("w", dist.Normal(w_loc, w_scale).to_event(1))
            pyro.sample("z", dist.Normal(z_loc, z_scale).to_event(1))

    return model, guide


class ClusteredLoss(nn.Module):
    """Minus the evidence lower bound per datum, the component summed out, entropies closed."""

    def __init__(self, problem: ClusteredProblem):
        super().__init__()
        self.net = Networks(problem)
        self.w_dim = problem.w_dim

    def forward(self, x: Tensor) -> Tensor:
        w_loc, w_scale, z_loc, z_scale = self.net.posterior(x)
        z = z_loc + z_scale * torch.randn_like(z_loc)
        loss = F.binary_cross_entropy_with_logits(self.net.decoder(z), x, reduction="sum")
        w = None
        if self.w_dim:
            w = w_loc + w_scale * torch.randn_like(w_loc)
            loss = loss + 0.5 * (w_loc.square() + w_scale.square() - 1).sum() - w_scale.log().sum()
        means, scales = self.net.prior(w)
        standardised = (z.unsqueeze(-2) - means) / scales
        log_code = -0.5 * standardised.square().sum(-1) - scales.log().sum(-1)  # (batch, K)
        log_prior = torch.logsumexp(torch.log_softmax(self.net.logits, -1) + log_code, -1)
        # Constants of both normals cancel but for the entropy's 1/2 a dimension.
        loss = loss - log_prior.sum() - z_scale.log().sum() - 0.5 * z_loc.numel()
        return loss / len(x)


def our_pair(problem: ClusteredProblem) -> ours.Start:
    """The package's pair, with the problem's initial values."""
    data_dim = problem.batches[0].shape[1]
    num_components, latent_dim = problem.means.shape
    if problem.w_dim:
        pair = pairs.gmvae(
            data_dim,
            latent_dim,
            num_components,
            w_dim=problem.w_dim,
            hidden=problem.hidden,
            component_hidden=tuple(len(bias) for _, bias in problem.components[:-1]),
        )
        ours.set_layers(pair.model.components, problem.components)
    else:
        pair = pairs.vade(data_dim, latent_dim, num_components, hidden=problem.hidden)
        pair.model.set(means=problem.means.cpu(), scales=torch.ones(problem.means.shape))
    ours.set_layers(pair.guide.encoder, problem.encoder)
    ours.set_layers(pair.model.decoder, problem.decoder)
    pair.model.to(problem.means.device)
    pair.guide.to(problem.means.device)
    return pair.model, pair.guide, pair.objective


def contenders(problem: ClusteredProblem, device: torch.device) -> list[Contender]:
    """Stock Pyro, hand-written eager, ours."""
    enumerated: Callable[[], Programs] = partial(programs, problem, "parallel")
    entries: list[stock_pyro.Entry] = [
        ("`TraceEnum_ELBO`", enumerated, partial(TraceEnum_ELBO, max_plate_nesting=1)),
        ("`Trace_ELBO`", partial(marginal_programs, problem), Trace_ELBO),
        ("`Trace_ELBO`, component drawn", partial(programs, problem, None), Trace_ELBO),
        (
            "`JitTraceEnum_ELBO`",
            enumerated,
            partial(JitTraceEnum_ELBO, max_plate_nesting=1, ignore_jit_warnings=True),
        ),
    ]
    batches, lr = problem.batches, problem.lr
    return [
        *stock_pyro.rows(entries, batches, lr, len(batches[0])),
        *hand_written.eager_rows(partial(ClusteredLoss, problem), batches, lr),
        *ours.rows(partial(our_pair, problem), batches, lr, "the package's pair"),
    ]

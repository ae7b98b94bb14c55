"""Hand-written PyTorch: the loss as one would type it without a probabilistic language."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from harness.timing import Contender, Runner, repeat
from torch import Tensor, nn
from torch.nn import functional as F

from contenders.problems import MixtureProblem, VAEProblem, network


class VAELoss(nn.Module):
    """Minus the evidence lower bound per datum, Kullback-Leibler term in closed form."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module):
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        loc, raw = self.encoder(x).chunk(2, dim=-1)
        return loc, F.softplus(raw)

    def forward(self, x: Tensor) -> Tensor:
        loc, scale = self.posterior(x)
        z = loc + scale * torch.randn_like(loc)
        logits = self.decoder(z)
        reconstruction = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        kl = 0.5 * (loc.square() + scale.square() - 1).sum() - scale.log().sum()
        return (reconstruction + kl) / len(x)


class MixtureLoss(nn.Module):
    """Minus the log-likelihood per datum of a mixture of diagonal Gaussians."""

    def __init__(self, problem: MixtureProblem):
        super().__init__()
        self.logits = nn.Parameter(problem.logits.clone())
        self.locs = nn.Parameter(problem.locs.clone())
        self.log_scales = nn.Parameter(problem.log_scales.clone())

    def forward(self, x: Tensor) -> Tensor:
        standardised = (x[:, None] - self.locs) * (-self.log_scales).exp()
        log_normal = -0.5 * standardised.square().sum(-1) - self.log_scales.sum(-1)
        log_joint = torch.log_softmax(self.logits, -1) + log_normal  # (num_data, components)
        constant = 0.5 * x.shape[-1] * math.log(2 * math.pi)
        return constant - torch.logsumexp(log_joint, -1).mean()


def _eager(loss: Callable[[], nn.Module], batches: Sequence[Any], lr: float, fused: bool) -> Runner:
    module = loss()
    optimizer = torch.optim.Adam(module.parameters(), lr=lr, fused=fused)

    def step(x: Any) -> Tensor:
        optimizer.zero_grad()
        value = module(x)
        value.backward()
        optimizer.step()
        return value.detach()

    return repeat(step, batches)


def _compiled(
    loss: Callable[[], nn.Module], batches: tuple[Tensor, ...], lr: float, whole: bool
) -> Runner:
    module = loss()
    on_cuda = batches[0].is_cuda
    # On a GPU the peers get CUDA graphs too.
    compiler = partial(torch.compile, mode="reduce-overhead" if on_cuda else "default")
    if whole:
        # Tensor learning rate and capturable state are what the PyTorch manual prescribes for
        # compiling an optimiser without recompilation and, on CUDA, for graphs.
        rate = torch.tensor(lr, device=batches[0].device)
        optimizer = torch.optim.Adam(module.parameters(), lr=rate, capturable=on_cuda)
        update = compiler(optimizer.step)
    else:
        optimizer = torch.optim.Adam(module.parameters(), lr=lr, fused=True)
        update = optimizer.step
    objective = compiler(module)

    def step(x: Tensor) -> Tensor:
        if on_cuda:
            torch.compiler.cudagraph_mark_step_begin()
        optimizer.zero_grad()
        value = objective(x)
        value.backward()
        update()
        return value.detach()

    return repeat(step, batches)


def eager_rows(
    loss: Callable[[], nn.Module], batches: Sequence[Any], lr: float, name: str = ""
) -> list[Contender]:
    """Eager, with torch's two Adams."""
    return [
        Contender(
            f"hand-written eager{name}",
            partial(_eager, loss, batches, lr, fused=False),
            note="torch.optim.Adam with its defaults",
        ),
        Contender(
            f"hand-written eager{name}, fused Adam",
            partial(_eager, loss, batches, lr, fused=True),
            note="torch.optim.Adam(fused=True)",
        ),
    ]


def contenders(problem: VAEProblem | MixtureProblem) -> list[Contender]:
    """Eager with torch's two Adams, and compiled in the two ways that people use."""
    if isinstance(problem, VAEProblem):
        batches, lr = problem.batches, problem.lr

        def loss() -> nn.Module:
            return VAELoss(network(problem.encoder), network(problem.decoder))
    else:
        batches, lr = (problem.x,), problem.lr
        loss = partial(MixtureLoss, problem)
    return [
        *eager_rows(loss, batches, lr),
        Contender(
            "hand-written, `torch.compile` of the loss",
            partial(_compiled, loss, batches, lr, whole=False),
            note="loss and its gradient compiled; eager torch.optim.Adam(fused=True)",
        ),
        Contender(
            "hand-written, `torch.compile` of loss and optimiser",
            partial(_compiled, loss, batches, lr, whole=True),
            note="loss and its gradient compiled, optimizer.step compiled apart",
        ),
    ]

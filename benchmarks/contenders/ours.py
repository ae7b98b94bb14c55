"""Ours: the package's VAE pair, and a user's own Pyro program, under `infer.Step`."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from harness.timing import Contender, Runner, repeat
from torch import Tensor, nn

from contenders.problems import Layer, MixtureProblem, VAEProblem
from contenders.stock_pyro import mixture_programs
from pyro_models import pairs
from pyro_models.infer import ELBO, Objective, Step
from pyro_models.infer.weights import Program
from pyro_models.networks import MLP


def linears(network: MLP) -> list[nn.Linear]:
    """The linear layers of a perceptron, first to last."""
    return [layer for layer in (*network.body, network.output) if isinstance(layer, nn.Linear)]


def layers(network: MLP) -> tuple[Layer, ...]:
    """Copies of the weights and biases of a perceptron, to give to another contender."""
    return tuple((m.weight.detach().clone(), m.bias.detach().clone()) for m in linears(network))


def vae_pair(problem: VAEProblem) -> pairs.Pair:
    """The package's own pair, with the problem's initial values."""
    data_dim = problem.batches[0].shape[1]
    pair = pairs.vae(data_dim, latent_dim=problem.latent_dim, hidden=problem.hidden)
    parts = (
        (pair.guide.encoder, problem.encoder),
        (pair.model.decoder, problem.decoder),
    )
    for network, values in parts:
        set_layers(network, values)
    pair.model.to(problem.batches[0].device)
    pair.guide.to(problem.batches[0].device)
    return pair


def set_layers(network: MLP, values: tuple[Layer, ...]) -> None:
    """Give a perceptron of the package a problem's initial values."""
    for linear, (weight, bias) in zip(linears(network), values, strict=True):
        linear.load_state_dict({"weight": weight, "bias": bias})


Start = tuple[Program, Program, Objective]
"""Model, guide and objective."""


def _start(made: Callable[[], Start], batches: Sequence[Any], lr: float, compiled: bool) -> Runner:
    model, guide, objective = made()
    optimizer = partial(torch.optim.Adam, lr=lr)
    step = Step(model, guide, objective, optimizer, compiled=compiled)

    def one(batch: Any) -> Tensor:
        return step(*batch) if isinstance(batch, tuple) else step(batch)

    inner = repeat(one, batches)

    def run(steps: int) -> float:
        loss = inner(steps)
        if step.fallback_reason is not None:
            raise RuntimeError(f"the step is not compiled: {step.fallback_reason}")
        return loss

    return run if compiled else inner


def rows(
    made: Callable[[], Start], batches: Sequence[Any], lr: float, program: str, name: str = ""
) -> list[Contender]:
    """Eager and compiled."""
    return [
        Contender(
            f"ours, {kind}{name}",
            partial(_start, made, batches, lr, compiled),
            note=f"infer.Step on {program}",
        )
        for kind, compiled in (("eager", False), ("compiled", True))
    ]


def contenders(problem: VAEProblem | MixtureProblem) -> list[Contender]:
    """Eager and compiled."""

    def made() -> Start:
        if isinstance(problem, VAEProblem):
            pair = vae_pair(problem)
            return pair.model, pair.guide, pair.objective
        return *mixture_programs(problem), ELBO()

    if isinstance(problem, VAEProblem):
        return rows(made, problem.batches, problem.lr, "the package's pair")
    program = "the same program as stock Pyro's Trace_ELBO row"
    return rows(made, (problem.x,), problem.lr, program)

"""Ours: the package's VAE pair, and a user's own Pyro program, under `infer.Step`."""

from functools import partial

import torch
from harness.timing import Contender, Runner, repeat
from torch import nn

from contenders.problems import Layer, MixtureProblem, VAEProblem
from contenders.stock_pyro import mixture_programs
from pyro_models import pairs
from pyro_models.infer import ELBO, Step
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
        for linear, (weight, bias) in zip(linears(network), values, strict=True):
            linear.load_state_dict({"weight": weight, "bias": bias})
    pair.model.to(problem.batches[0].device)
    pair.guide.to(problem.batches[0].device)
    return pair


def _start(problem: VAEProblem | MixtureProblem, compiled: bool) -> Runner:
    if isinstance(problem, VAEProblem):
        pair = vae_pair(problem)
        model, guide, objective = pair.model, pair.guide, pair.objective
        batches = problem.batches
    else:
        model, guide = mixture_programs(problem)
        objective = ELBO()
        batches = (problem.x,)
    optimizer = partial(torch.optim.Adam, lr=problem.lr)
    step = Step(model, guide, objective, optimizer, compiled=compiled)
    inner = repeat(step, batches)

    def run(steps: int) -> float:
        loss = inner(steps)
        if step.fallback_reason is not None:
            raise RuntimeError(f"the step is not compiled: {step.fallback_reason}")
        return loss

    return run if compiled else inner


def contenders(problem: VAEProblem | MixtureProblem) -> list[Contender]:
    """Eager and compiled."""
    program = (
        "the package's pair"
        if isinstance(problem, VAEProblem)
        else "the same program as stock Pyro's Trace_ELBO row"
    )
    return [
        Contender(
            f"ours, {name}", partial(_start, problem, compiled), note=f"infer.Step on {program}"
        )
        for name, compiled in (("eager", False), ("compiled", True))
    ]

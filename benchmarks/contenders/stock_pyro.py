"""Stock Pyro: models written as its tutorials write them, trained by `pyro.infer.SVI`."""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from harness.timing import Contender, Runner, repeat
from pyro.infer import (
    SVI,
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)
from torch import Tensor
from torch.nn import functional as F

from contenders.problems import MixtureProblem, VAEProblem, network

Program = Callable[[Any], object]
Entry = tuple[str, Callable[[], tuple[Program, Program]], Callable[[], object]]
"""Name of a row, its programs, its objective."""


def vae_programs(problem: VAEProblem) -> tuple[Program, Program]:
    """The VAE of Pyro's tutorial."""
    encoder, decoder = network(problem.encoder), network(problem.decoder)
    zero = torch.zeros(problem.latent_dim, device=problem.batches[0].device)
    one = torch.ones_like(zero)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(zero.expand(len(x), -1), one).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, raw = encoder(x).chunk(2, dim=-1)
            pyro.sample("z", dist.Normal(loc, F.softplus(raw)).to_event(1))

    return model, guide


def mixture_programs(problem: MixtureProblem) -> tuple[Program, Program]:
    """The mixture with its component summed out in the model."""

    def model(x: Tensor) -> None:
        logits = pyro.param("logits", problem.logits.clone)
        locs = pyro.param("locs", problem.locs.clone)
        log_scales = pyro.param("log_scales", problem.log_scales.clone)
        mixture = dist.MixtureSameFamily(
            dist.Categorical(logits=logits), dist.Normal(locs, log_scales.exp()).to_event(1)
        )
        with pyro.plate("data", len(x)):
            pyro.sample("x", mixture, obs=x)

    return model, _empty_guide


def enumerated_mixture_programs(problem: MixtureProblem) -> tuple[Program, Program]:
    """The mixture with its component as a site, which `TraceEnum_ELBO` sums out."""

    @config_enumerate
    def model(x: Tensor) -> None:
        logits = pyro.param("logits", problem.logits.clone)
        locs = pyro.param("locs", problem.locs.clone)
        log_scales = pyro.param("log_scales", problem.log_scales.clone)
        with pyro.plate("data", len(x)):
            component = pyro.sample("component", dist.Categorical(logits=logits))
            scales = log_scales.exp()
            fn = dist.Normal(locs[component], scales[component]).to_event(1)
            pyro.sample("x", fn, obs=x)

    return model, _empty_guide


def _empty_guide(x: Tensor) -> None:
    """A model whose latents are all summed out needs none."""


def start(
    programs: Callable[[], tuple[Program, Program]],
    objective: Callable[[], object],
    batches: Sequence[Any],
    lr: float,
    batch_size: int,
) -> Runner:
    """SVI with Adam, in a parameter store of its own."""
    model, guide = programs()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": lr}), objective())
    run = repeat(svi.step, batches, data_per_loss=batch_size)
    store: dict = {"params": {}, "constraints": {}}

    def run_in_own_store(steps: int) -> float:
        # Pyro's parameter store is global; contenders must not train each other's parameters.
        with pyro.get_param_store().scope(store), warnings.catch_warnings():
            # Pyro's Jit objectives stand on torch.jit.
            warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)
            return run(steps)

    return run_in_own_store


def contenders(problem: VAEProblem | MixtureProblem) -> list[Contender]:
    """The objectives that fit the problem, and the fastest of Pyro's own compiled variants."""
    entries: list[Entry]
    if isinstance(problem, VAEProblem):
        batches = problem.batches
        programs = partial(vae_programs, problem)
        entries = [
            ("`Trace_ELBO`", programs, Trace_ELBO),
            ("`TraceMeanField_ELBO`", programs, TraceMeanField_ELBO),
            ("`JitTrace_ELBO`", programs, partial(JitTrace_ELBO, ignore_jit_warnings=True)),
            # JitTraceMeanField_ELBO traces anew in every step (pyro-ppl 1.9.2), so it is no peer.
        ]
    else:
        batches = (problem.x,)
        enumerated = partial(enumerated_mixture_programs, problem)
        marginal = partial(mixture_programs, problem)
        entries = [
            ("`TraceEnum_ELBO`", enumerated, partial(TraceEnum_ELBO, max_plate_nesting=1)),
            ("`Trace_ELBO`", marginal, Trace_ELBO),
            (
                "`JitTraceEnum_ELBO`",
                enumerated,
                partial(JitTraceEnum_ELBO, max_plate_nesting=1, ignore_jit_warnings=True),
            ),
            ("`JitTrace_ELBO`", marginal, partial(JitTrace_ELBO, ignore_jit_warnings=True)),
        ]
    return rows(entries, batches, problem.lr, len(batches[0]))


def rows(
    entries: Sequence[Entry], batches: Sequence[Any], lr: float, batch_size: int
) -> list[Contender]:
    """A contender for each entry."""
    return [
        Contender(
            f"stock Pyro, {name}",
            partial(start, program, objective, batches, lr, batch_size),
            note="pyro.infer.SVI with pyro.optim.Adam, validation off",
        )
        for name, program, objective in entries
    ]

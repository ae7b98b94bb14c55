"""Stock Pyro: models written as its tutorials write them, trained by `pyro.infer.SVI`."""

import warnings
from collections.abc import Callable
from functools import partial

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

Program = Callable[[Tensor], object]


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


def _start(
    programs: Callable[[], tuple[Program, Program]],
    objective: Callable[[], object],
    batches: tuple[Tensor, ...],
    lr: float,
) -> Runner:
    model, guide = programs()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": lr}), objective())
    run = repeat(svi.step, batches, data_per_loss=len(batches[0]))
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
    entries: list[tuple[str, Callable[[], tuple[Program, Program]], Callable[[], object]]]
    if isinstance(problem, VAEProblem):
        batches = problem.batches
        programs = partial(vae_programs, problem)
        entries = [
            ("Trace_ELBO", programs, Trace_ELBO),
            ("TraceMeanField_ELBO", programs, TraceMeanField_ELBO),
            ("JitTrace_ELBO", programs, partial(JitTrace_ELBO, ignore_jit_warnings=True)),
            # JitTraceMeanField_ELBO traces anew in every step (pyro-ppl 1.9.2), so it is no peer.
        ]
    else:
        batches = (problem.x,)
        enumerated = partial(enumerated_mixture_programs, problem)
        marginal = partial(mixture_programs, problem)
        entries = [
            ("TraceEnum_ELBO", enumerated, partial(TraceEnum_ELBO, max_plate_nesting=1)),
            ("Trace_ELBO", marginal, Trace_ELBO),
            (
                "JitTraceEnum_ELBO",
                enumerated,
                partial(JitTraceEnum_ELBO, max_plate_nesting=1, ignore_jit_warnings=True),
            ),
            ("JitTrace_ELBO", marginal, partial(JitTrace_ELBO, ignore_jit_warnings=True)),
        ]
    return [
        Contender(
            f"stock Pyro, `{name}`",
            partial(_start, program, objective, batches, problem.lr),
            note="pyro.infer.SVI with pyro.optim.Adam, validation off",
        )
        for name, program, objective in entries
    ]

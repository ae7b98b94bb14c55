"""NumPyro: the same models in JAX, one jitted call a step, or many steps in one `lax.scan`."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from harness.timing import Contender, Runner
from numpyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor

from contenders.problems import Layer, MixtureProblem, VAEProblem

Program = Callable[..., None]


def _array(tensor: Tensor, device: jax.Device) -> jax.Array:
    return jax.device_put(tensor.cpu().numpy(), device)


def _network(name: str, layers: tuple[Layer, ...], device: jax.Device) -> Callable:
    values = [(_array(weight.T, device), _array(bias, device)) for weight, bias in layers]

    def apply(h: jax.Array) -> jax.Array:
        for index, (weight, bias) in enumerate(values):
            w = numpyro.param(f"{name}.{index}.weight", weight)
            b = numpyro.param(f"{name}.{index}.bias", bias)
            h = h @ w + b
            if index + 1 < len(values):
                h = jnp.tanh(h)
        return h

    return apply


def vae_programs(problem: VAEProblem, device: jax.Device) -> tuple[Program, Program]:
    """The VAE of NumPyro's tutorial, with parameters as `numpyro.param` sites."""
    encoder = _network("encoder", problem.encoder, device)
    decoder = _network("decoder", problem.decoder, device)
    zero = jnp.zeros(problem.latent_dim)

    def model(x: jax.Array) -> None:
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(zero, 1.0).to_event(1))
            numpyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: jax.Array) -> None:
        with numpyro.plate("data", len(x)):
            loc, raw = jnp.split(encoder(x), 2, axis=-1)
            numpyro.sample("z", dist.Normal(loc, jax.nn.softplus(raw)).to_event(1))

    return model, guide


def mixture_programs(problem: MixtureProblem, device: jax.Device) -> tuple[Program, Program]:
    """The mixture with its component summed out."""
    logits0, locs0, log_scales0 = (
        _array(value, device) for value in (problem.logits, problem.locs, problem.log_scales)
    )

    def model(x: jax.Array) -> None:
        logits = numpyro.param("logits", logits0)
        locs = numpyro.param("locs", locs0)
        log_scales = numpyro.param("log_scales", log_scales0)
        mixture = dist.MixtureSameFamily(
            dist.Categorical(logits=logits), dist.Normal(locs, jnp.exp(log_scales)).to_event(1)
        )
        with numpyro.plate("data", len(x)):
            numpyro.sample("x", mixture, obs=x)

    def guide(x: jax.Array) -> None:
        """All latents are summed out."""

    return model, guide


def _svi(problem: VAEProblem | MixtureProblem, device: jax.Device) -> SVI:
    if isinstance(problem, VAEProblem):
        objective = TraceMeanField_ELBO()
        model, guide = vae_programs(problem, device)
    else:
        objective = Trace_ELBO()
        model, guide = mixture_programs(problem, device)
    return SVI(model, guide, numpyro.optim.Adam(problem.lr), objective)


def _batches(problem: VAEProblem | MixtureProblem, device: jax.Device) -> Sequence[jax.Array]:
    tensors = problem.batches if isinstance(problem, VAEProblem) else (problem.x,)
    return [_array(tensor, device) for tensor in tensors]


def _start_jit(problem: VAEProblem | MixtureProblem, device: jax.Device) -> Runner:
    svi = _svi(problem, device)
    batches = _batches(problem, device)
    state = jax.device_put(svi.init(jax.random.PRNGKey(0), batches[0]), device)
    update = jax.jit(svi.update)
    batch = cycle(batches)

    def run(steps: int) -> float:
        nonlocal state
        loss = jnp.nan
        for _ in range(steps):
            state, loss = update(state, next(batch))
        jax.block_until_ready(state)
        return float(loss) / len(batches[0])

    return run


def _start_scan(problem: VAEProblem | MixtureProblem, device: jax.Device, block: int) -> Runner:
    svi = _svi(problem, device)
    batches = _batches(problem, device)
    state = jax.device_put(svi.init(jax.random.PRNGKey(0), batches[0]), device)
    if len(batches) == 1:  # the whole set every step: closed over, not copied `block` times

        @jax.jit
        def many(state: object, _: None) -> tuple[object, jax.Array]:
            return jax.lax.scan(lambda s, _: svi.update(s, batches[0]), state, length=block)

        xs = None
    else:

        @jax.jit
        def many(state: object, xs: jax.Array) -> tuple[object, jax.Array]:
            return jax.lax.scan(svi.update, state, xs)

        in_turn = cycle(batches)
        xs = jnp.stack([next(in_turn) for _ in range(block)])

    def run(steps: int) -> float:
        nonlocal state
        losses = jnp.array([jnp.nan])
        for _ in range(steps // block):
            state, losses = many(state, xs)
        jax.block_until_ready(state)
        return float(losses[-1]) / len(batches[0])

    return run


def available(device_type: str) -> jax.Device | None:
    """JAX's device of this kind ("cpu", "cuda"), or none if this JAX has none."""
    try:
        return jax.devices("gpu" if device_type == "cuda" else device_type)[0]
    except RuntimeError:
        return None


def contenders(
    problem: VAEProblem | MixtureProblem, device: jax.Device, block: int = 100
) -> list[Contender]:
    """`jit` and `scan`."""
    return [
        Contender(
            "NumPyro, `jit`",
            partial(_start_jit, problem, device),
            note="jax.jit(svi.update), one call a step, waited for once a chunk",
        ),
        Contender(
            "NumPyro, `scan`",
            partial(_start_scan, problem, device, block),
            block=block,
            note=f"jax.lax.scan over {block} steps in one call",
        ),
    ]

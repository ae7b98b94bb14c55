"""How noisy an objective's gradient is on a pair, and what the noise costs."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_models.errors import OptionError
from pyro_models.infer.diagnostics.gradient_draws import OpenPair, Tally, tally_draws
from pyro_models.infer.diagnostics.noise_record import (
    GradientNoise,
    ParameterNoise,
    SideNoise,
    mean_ratio,
)
from pyro_models.infer.inspection import as_arguments, unwrapped
from pyro_models.infer.objectives import Objective
from pyro_models.infer.pair_checks import keywords
from pyro_models.infer.random_state import Stream, choose_seed, derive_seed
from pyro_models.infer.weights import Program
from pyro_models.options import positive_int

Objectives = Mapping[str, Objective] | Sequence[Objective] | Objective


def _at_least_two(name: str, value: int) -> int:
    if positive_int(name, value) < 2:
        raise OptionError(f"{name} is {value}; a variance needs at least 2")
    return value


@dataclass(frozen=True)
class MeanGradient:
    """A reference: the mean gradient of an objective over draws of their own.

    Raises:
        OptionError: If a value cannot work.
    """

    of: Objective | None = None
    """The objective; ``None`` stands for the first of those compared."""
    draws: int = 1000
    """Gradients averaged."""

    def __post_init__(self) -> None:
        if self.of is not None and not isinstance(self.of, Objective):
            raise OptionError(f"of={self.of!r} is no objective; give one, such as ELBO(100)")
        _at_least_two("MeanGradient's draws", self.draws)


def gradient_noise(
    model: Program,
    guide: Program,
    x: Any,
    objectives: Objectives,
    draws: int = 200,
    *,
    reference: MeanGradient | Mapping[str, Tensor] = MeanGradient(),
    num_data: int | None = None,
    warm_up: int = 10,
    seed: int = 0,
    progress: bool = False,
) -> GradientNoise:
    r"""Draw gradients of objectives on one batch, and say how much of them is signal.

    With :math:`g_1, \dots, g_D` independent draws of an objective's gradient, of the bound in nats
    per datum (divided by N), for each parameter and for all of the model's, and of the guide's:

    - mean :math:`\bar g` and variance :math:`\mathrm{tr}\,\mathrm{Cov}(g) = \sum_j s_j^2`, with
      :math:`s_j^2` the variance over draws of number j;
    - signal-to-noise ratio, the average over numbers of :math:`|\bar g_j| / s_j` (Rainforth et al.
      2018, whose finding it is that the guide's falls as :math:`K^{-1/2}` for IWAE);
    - cosine, the average over draws of
      :math:`g_d \cdot r / (\lVert g_d \rVert \lVert r \rVert)`, with :math:`r` the reference;
      a draw of zero length counts as 0. Between objectives with other optima (IWAE and ELBO) it
      tells bias as well as noise;
    - cost, the seconds of one gradient (the median; eager, without the optimiser's update), and
      variance times cost: of two unbiased estimators the one with the lower product is the better
      buy, since the other's draws could be averaged.

    The data are one minibatch, the same in every draw, so that the noise is that of the latents
    (and of what else the programs draw). Parameters, gradients, buffers, generators and the
    objectives (their baselines) are left as they were. Frozen parameters and parameters of the
    objectives are not part of it. Parameters made with ``pyro.param`` have the values of Pyro's
    store, or of the fit for a fit's ``model`` and ``guide``; unconstrained ones are differentiated.
    Memory is a few times that of the parameters, however many draws.

    Args:
        model: A Pyro program.
        guide: A Pyro program with the same arguments.
        x: A batch ``(B, ...)``, or a tuple of several arguments of the programs, as for ``fit``.
        objectives: Objectives by name, or a sequence of them, which are then named by ``repr``.
        draws: D, gradients drawn of each objective, at least 2. Standard deviations are known to a
            relative error of about ``1 / sqrt(2 * draws)``.
        reference: What cosines are taken to: the mean gradient of an objective, of draws of its
            own, or a gradient given by parameter name.
        num_data: N, for a model with an argument ``num_data``; ``len(x)`` if not given.
        warm_up: Draws before those that count, in which moving averages settle.
        seed: Seed of all draws. Objectives share it, so that they meet the same noise.
        progress: Whether to show a progress bar.

    Returns:
        A record with a table and a plot.

    Raises:
        OptionError: If an option cannot work, or there is nothing to differentiate.
        DataError: If the data are empty or not finite.
        NonFiniteError: If a parameter or gradient is; it names parameters and sites.
        SiteMismatchError: If model and guide do not fit together.

    References:
        Rainforth et al. 2018, "Tighter Variational Bounds are Not Necessarily Better",
        https://arxiv.org/abs/1802.04537

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro_models.infer.objectives import ELBO, AnalyticKL, MonteCarloKL
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     loc = pyro.param("loc", torch.tensor(2.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(loc, 0.8))
        >>> splits = {"closed KL": ELBO(), "Monte Carlo": ELBO(kl=MonteCarloKL())}
        >>> near = MeanGradient(draws=50)
        >>> noise = gradient_noise(model, guide, torch.zeros(4), splits, 50, reference=near)
        >>> # The gradient is the mean over data of -loc - z with the closed form, else of -2 z.
        >>> one, two = noise.sides
        >>> round(one.mean_norm), round(two.mean_norm), round(two.variance / one.variance, 3)
        (4, 4, 4.0)
    """
    named = _named(objectives)
    draws = _at_least_two("draws", draws)
    if isinstance(warm_up, bool) or not isinstance(warm_up, int) or warm_up < 0:
        raise OptionError(f"warm_up={warm_up!r} is not a whole number of at least 0; give one")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise OptionError(f"seed={seed!r} is not a whole number; give one")
    seed = choose_seed(seed)
    args = as_arguments(x, model, guide)
    kwargs = _keywords(model, guide, num_data, len(args[0]))
    with OpenPair.opened(model, guide, args, kwargs) as pair:
        with tqdm(total=0, unit="draw", disable=not progress) as bar:
            target, errors = _reference(pair, reference, named, warm_up, seed, bar)
            tallies = {}
            for name, objective in named.items():
                pair.seed(derive_seed(seed, Stream.TRAINING))
                tallies[name] = tally_draws(pair, name, objective, draws, warm_up, target, bar)
        return _record(pair, tallies, target, errors, seed)


def _named(objectives: Objectives) -> dict[str, Objective]:
    if isinstance(objectives, Objective):
        objectives = (objectives,)
    if not isinstance(objectives, Mapping | Sequence) or isinstance(objectives, str):
        raise OptionError(f"objectives is {objectives!r}; give a mapping or sequence of objectives")
    pairs = (
        [(str(name), given) for name, given in objectives.items()]
        if isinstance(objectives, Mapping)
        else [(repr(given), given) for given in objectives]
    )
    if not pairs:
        raise OptionError("there are no objectives; give at least one, such as [ELBO()]")
    for name, given in pairs:
        if not isinstance(given, Objective):
            raise OptionError(
                f"objective {name!r} is a {type(given).__name__}; give one of pyro_models.infer's, "
                "such as ELBO()"
            )
    if len(dict(pairs)) < len(pairs):
        raise OptionError(
            f"objectives of the same name in {[name for name, _ in pairs]}; give a mapping from "
            "names of your own"
        )
    return dict(pairs)


def _keywords(model: Program, guide: Program, num_data: int | None, size: int) -> dict[str, Any]:
    if num_data is not None:
        positive_int("num_data", num_data)
    kwargs = keywords(unwrapped(model), unwrapped(guide), size if num_data is None else num_data)
    if num_data is not None and not kwargs:
        raise OptionError(
            f"num_data is {num_data}, and the model takes no such argument; let its data plate say "
            "the size of the whole set, and leave num_data out"
        )
    return kwargs


def _reference(
    pair: OpenPair,
    given: MeanGradient | Mapping[str, Tensor],
    named: dict[str, Objective],
    warm_up: int,
    seed: int,
    bar: Any,
) -> tuple[Tensor, dict[str, float]]:
    """The reference, flat, and its relative error by side."""
    if isinstance(given, Mapping):
        return _given_reference(pair, given), dict.fromkeys(sorted(set(pair.sides.values())), 0.0)
    if not isinstance(given, MeanGradient):
        raise OptionError(
            f"reference is {given!r}; give MeanGradient(...) or gradients by parameter name"
        )
    name, objective = next(iter(named.items())) if given.of is None else (repr(given.of), given.of)
    # A stream of its own: a draw that is part of the mean would look like it.
    pair.seed(derive_seed(seed, Stream.VALIDATION))
    tally = tally_draws(pair, name, objective, given.draws, warm_up, None, bar)
    target = tally.moments.mean
    squares = zip(
        *(part.split(pair.sizes) for part in (target.square(), tally.moments.variance)),
        strict=True,
    )
    sums: dict[str, tuple[float, float]] = {}
    for side, (length, noise) in zip(pair.sides.values(), squares, strict=True):
        before = sums.get(side, (0.0, 0.0))
        sums[side] = (before[0] + float(length.sum()), before[1] + float(noise.sum()))
    errors = {
        side: math.sqrt(noise / given.draws / length) if length > 0 else math.inf
        for side, (length, noise) in sorted(sums.items())
    }
    return target, errors


def _given_reference(pair: OpenPair, given: Mapping[str, Tensor]) -> Tensor:
    shapes = {name: tuple(parameter.shape) for name, parameter in pair.parameters.items()}
    theirs = {name: tuple(torch.as_tensor(value).shape) for name, value in given.items()}
    if shapes != theirs:
        raise OptionError(
            f"the reference has shapes {theirs}, and the parameters have {shapes}; give one "
            "gradient for each parameter, of its shape"
        )
    flat = [
        torch.as_tensor(given[name]).detach().to(pair.device, torch.float64).reshape(-1)
        for name in shapes
    ]
    if not all(bool(part.isfinite().all()) for part in flat):
        raise OptionError("the reference is NaN or infinite; give finite gradients")
    return torch.cat(flat)


def _record(
    pair: OpenPair,
    tallies: dict[str, Tally],
    target: Tensor,
    errors: dict[str, float],
    seed: int,
) -> GradientNoise:
    parameters: dict[str, dict[str, ParameterNoise]] = {}
    rows = []
    for objective, tally in tallies.items():
        draws = tally.moments.count
        means, variances = pair.shaped(tally.moments.mean), pair.shaped(tally.moments.variance)
        parameters[objective] = {
            name: ParameterNoise(
                pair.sides[name],
                means[name],
                variances[name],
                tally.cosines[f"parameter {name}"] / draws,
                draws,
            )
            for name in pair.parameters
        }
        seconds = statistics.median(tally.seconds)
        for side in sorted(errors, key=("model", "guide", "both").index):
            own = [name for name, owner in pair.sides.items() if owner == side]
            mean = torch.cat([means[name].reshape(-1) for name in own])
            variance = torch.cat([variances[name].reshape(-1) for name in own])
            rows.append(
                SideNoise(
                    objective,
                    side,
                    mean.numel(),
                    float(mean.norm()),
                    float(variance.sum()),
                    mean_ratio(mean, variance),
                    tally.cosines[side] / draws,
                    seconds,
                )
            )
    return GradientNoise(
        parameters,
        tuple(rows),
        {name: statistics.median(tally.seconds) for name, tally in tallies.items()},
        pair.shaped(target),
        errors,
        next(iter(tallies.values())).moments.count,
        seed,
    )

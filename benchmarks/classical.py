"""The classical models beside scikit-learn and stock Pyro, in one run.

Three parts, each of interleaved rounds, ratios within a round:

ppca      probabilistic PCA, N = 100,000, D = 1000, latent 50, float64: closed form and EM to
          convergence beside scikit-learn's PCA, with the likelihood each reaches
mixture   EM of a mixture of full covariances, N = 200,000, D = 20, K = 50, float64: ten
          iterations from the same start beside scikit-learn's GaussianMixture
svi       a compiled step of the mixture with the component summed out: beside stock Pyro's
          TraceEnum_ELBO on the same model (K = 8, D = 2, N = 1000), and on minibatches of ever
          larger data sets

    python benchmarks/classical.py ppca mixture svi

Writes benchmarks/results/classical-cpu.json. The first part takes 4 GiB of memory.
"""

import argparse
import gc
import json
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import torch
from harness import machine, report
from harness.timing import Contender, Timings, race, ratios, repeat, spread
from pyro.infer import SVI, TraceEnum_ELBO, config_enumerate
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as SklearnMixture
from torch import Tensor

from guides.empty import Empty
from pyro_models.infer import Enumerated, Step, em
from pyro_models.mixture import GaussianMixture
from pyro_models.ppca import ProbabilisticPCA
from pyro_models.starts import KMeansPlusPlus

ADAM = partial(torch.optim.Adam, lr=1e-3)
SIZES = (1_000, 10_000, 100_000, 1_000_000)
Fitter = Callable[[], float]


def time_fits(fitters: dict[str, Fitter], rounds: int) -> dict[str, Any]:
    """Seconds of whole fits in turn, and what each reached: the mean of log p(x)."""
    seconds: dict[str, list[float]] = {name: [] for name in fitters}
    reached: dict[str, float] = {}
    for number in range(rounds):
        for name, fit in fitters.items():
            gc.collect()
            start = time.perf_counter()
            reached[name] = fit()
            seconds[name].append(time.perf_counter() - start)
            print(f"  round {number + 1}: {name} {seconds[name][-1]:.2f} s", flush=True)
    base = next(iter(fitters))
    return {
        name: {
            "seconds": spread(times),
            "time_over_scikit_learn": spread(
                [ours / theirs for ours, theirs in zip(times, seconds[base], strict=True)]
            ),
            "log_likelihood": reached[name],
        }
        for name, times in seconds.items()
    }


def ppca(args: argparse.Namespace) -> dict[str, Any]:
    """Whole fits of probabilistic PCA."""
    count, dim, latent = args.ppca_size
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    x = draw(count, latent) @ draw(latent, dim) / latent**0.5
    x += draw(count, dim)
    few, array = x[:2000], x.numpy()
    iterations: list[int] = []

    def theirs() -> float:
        return float(PCA(latent, random_state=0).fit(array).score(few.numpy()))

    def closed_form() -> float:
        model = ProbabilisticPCA(dim, latent).double()
        model.maximize_likelihood(x, correction=1)
        return float(model.log_prob(few).mean())

    def by_em() -> float:
        model = ProbabilisticPCA(dim, latent).double()
        torch.manual_seed(0)
        result = em(model, x, tolerance=1e-6, progress=False)
        iterations.append(result.steps)
        return float(model.log_prob(few).mean())

    fitters = {"scikit-learn, PCA": theirs, "closed form": closed_form, "EM": by_em}
    with torch.no_grad():
        found = time_fits(fitters, args.fit_rounds)
    return {"N": count, "D": dim, "latent": latent, "em_iterations": iterations[-1], "fits": found}


def mixture(args: argparse.Namespace) -> dict[str, Any]:
    """Ten iterations of EM from the same start."""
    count, dim, components = args.mixture_size
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    centres = 4 * draw(components, dim)
    which = torch.randint(components, (count,), generator=generator)
    x = centres[which] + draw(count, dim)
    start = GaussianMixture(components, dim).double()
    start.initialize(x[:20_000], KMeansPlusPlus(), torch.Generator().manual_seed(1))
    state = {name: value.clone() for name, value in start.state_dict().items()}
    precisions = torch.linalg.inv(start.covariances.detach()).numpy()

    def theirs() -> float:
        model = SklearnMixture(
            components,
            max_iter=10,
            tol=0.0,
            weights_init=start.weights.detach().numpy(),
            means_init=start.means.detach().numpy(),
            precisions_init=precisions,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return float(model.fit(x.numpy()).score(x[:20_000].numpy()))

    def ours(precision: torch.dtype) -> float:
        model = GaussianMixture(components, dim).to(precision)
        model.load_state_dict(state)
        em(model, x.to(precision), epochs=10, tolerance=0.0, progress=False)
        return float(model.log_prob(x[:20_000].to(precision)).mean())

    fitters: dict[str, Fitter] = {
        "scikit-learn, GaussianMixture": theirs,
        "EM": lambda: ours(torch.float64),
        "EM, float32": lambda: ours(torch.float32),
    }
    with torch.no_grad():
        found = time_fits(fitters, args.fit_rounds)
    return {"N": count, "D": dim, "K": components, "iterations": 10, "fits": found}


def svi(args: argparse.Namespace) -> dict[str, Any]:
    """Steps: beside stock Pyro, and on minibatches of sets of every size."""
    x = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))

    def stock() -> Any:
        pyro.clear_param_store()
        model = _started(8, 2, x)
        elbo = TraceEnum_ELBO(max_plate_nesting=1)
        adam = pyro.optim.Adam({"lr": 1e-3})
        return repeat(SVI(config_enumerate(model), Empty(), adam, elbo).step, [x], len(x))

    def ours() -> Any:
        return repeat(Step(_started(8, 2, x), Empty(), Enumerated(), ADAM), [x])

    runs = [
        Contender("stock Pyro, `TraceEnum_ELBO`", stock),
        Contender("ours, compiled", ours),
    ]
    theirs, compiled = race(runs, rounds=args.rounds, chunk_seconds=args.chunk)
    sizes = race(
        [_minibatches(n) for n in args.sizes], rounds=args.rounds, chunk_seconds=args.chunk
    )
    return {
        "stock_over_ours": ratios(theirs, compiled),
        "seconds_per_step": {"stock": theirs.summary(), "ours": compiled.summary()},
        "minibatch": 256,
        "by_num_data": [
            _row(n, timing, sizes[0]) for n, timing in zip(args.sizes, sizes, strict=True)
        ],
    }


def _started(components: int, dim: int, x: Tensor) -> GaussianMixture:
    torch.manual_seed(0)
    model = GaussianMixture(components, dim)
    model.initialize(x, KMeansPlusPlus())
    return model


def _minibatches(num_data: int) -> Contender:
    """Steps on minibatches of 256 drawn from a set of so many data."""

    def start() -> Any:
        x = torch.randn(num_data, 20, generator=torch.Generator().manual_seed(0))
        step = Step(_started(8, 20, x[:1000]), Empty(), Enumerated(), ADAM)
        order = torch.randperm(num_data, generator=torch.Generator().manual_seed(1))
        chosen = [part for part in order.split(256) if len(part) == 256][:50]

        def one(index: Tensor) -> Tensor:
            return step(x.index_select(0, index), num_data=num_data)

        return repeat(one, chosen)

    return Contender(f"N = {num_data}", start)


def _row(num_data: int, timing: Timings, first: Timings) -> dict[str, Any]:
    return {
        "N": num_data,
        "seconds_per_step": timing.summary(),
        "time_over_smallest": ratios(timing, first),
    }


PARTS = {"ppca": ppca, "mixture": mixture, "svi": svi}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="+", choices=[*PARTS], metavar="PART", help=str([*PARTS]))
    parser.add_argument("--fit-rounds", type=int, default=3, help="of whole fits (3)")
    parser.add_argument("--rounds", type=int, default=7, help="of steps (7)")
    parser.add_argument("--chunk", type=float, default=0.3, help="seconds of each in a round")
    parser.add_argument("--ppca-size", type=int, nargs=3, default=(100_000, 1000, 50))
    parser.add_argument("--mixture-size", type=int, nargs=3, default=(200_000, 20, 50))
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="of data sets, for svi")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=report.RESULTS, help="folder for results")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    machine.share_cores(args.threads)
    path = args.out / "classical-cpu.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    results |= {"benchmark": "classical", "machine": machine.facts(torch.device("cpu"))}
    for name in args.parts:
        with pyro.validation_enabled(False):
            results[name] = PARTS[name](args)
        report.save(results, path)
        print(json.dumps(results[name], indent=1))
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The stick-breaking VAE beside a Gaussian one: latents, log p(x), and stability of training.

    python benchmarks/sticks.py latents --sets digits fashion   # about half an hour
    python benchmarks/sticks.py stability                       # ten runs; run it again to go on

``latents``: both pairs with the same networks (one layer of 500 ReLU), 50 latents, Adam and epochs,
as in Nalisnick and Smyth (2017). Error of the k nearest neighbours among training latents: of the
Gaussian, z; of sticks, the fractions v and the pieces pi; once at posterior means (fractions are
independent given x, so that pi at the mean of v is its mean), once at one draw for each datum, in
which dimensions that are not in use are noise. In the first fifth of
the steps the weight of the divergence rises to 1, for both (--warm-up 0 has none). Networks are
trained on pixels binarised anew in each step, and see grey ones for latents; log p(x) is of the
test set binarised once. Fashion-MNIST is split officially, a third of the digits is held out.

``stability``: static MNIST, 50 epochs, Beta(1, 5), batch 100, over seeds and rates: whether a loss,
gradient or parameter was ever NaN or infinite, and the bounds at the end.

Adds to benchmarks/results/sticks-cpu.json, one entry at a time.
"""

import argparse
import math
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from harness import machine, report
from harness.scores import neighbour_errors
from torch import Tensor, nn

from pyro_models import data, pairs
from pyro_models.errors import NonFiniteError
from pyro_models.infer import (
    Fit,
    ImportanceSampling,
    LinearWarmup,
    Validation,
    fit,
    log_likelihood,
)
from pyro_models.likelihoods import Bernoulli

CPU = torch.device("cpu")
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
BATCH = 100
RATES = (3e-4, 3e-3)
EPOCHS = {"digits": 500, "fashion": 50}


def read(name: str, folder: Path, limit: int | None) -> data.Holdout:
    """Training and test part, grey in [0, 1]."""
    if name == "digits":
        parts = data.holdout(data.digits(), 1 / 3, seed=0, stratify=True)
    else:
        test = data.fashion_mnist(folder, train=False)
        parts = data.Holdout(data.fashion_mnist(folder), test)
    if limit is None:
        return parts
    return data.Holdout(parts.train.subset(slice(0, limit)), parts.held_out.subset(slice(0, limit)))


def made(kind: str, x: Tensor, args: argparse.Namespace) -> pairs.Pair:
    """One of the two pairs, with the same networks but for the code between them."""
    common = {"hidden": (args.hidden,), "activation": nn.ReLU, "likelihood": Bernoulli()}
    if kind == "sticks":
        options = {"truncation": args.latents, "concentration": 5.0}
        return pairs.build("stick_breaking_vae", x, **common, **options)
    return pairs.build("vae", x, **common, latent_dim=args.latents)


def train(pair: pairs.Pair, x: Tensor, args: argparse.Namespace, **options: Any) -> Fit:
    """The paper's recipe: Adam with beta1 = 0.95, batch 100; and the warm-up."""
    rate = options.pop("lr")
    steps = int(args.warm_up * options["epochs"] * math.ceil(len(x) / BATCH))
    return fit(
        pair.model,
        pair.guide,
        x,
        objective=pair.objective,
        optimizer=partial(torch.optim.Adam, lr=rate, betas=(0.95, 0.999)),
        batch_size=BATCH,
        kl=LinearWarmup(steps) if steps else None,
        progress=False,
        compiled=args.compiled,
        **options,
    )


@torch.no_grad()
def codes(kind: str, pair: pairs.Pair, x: Tensor) -> dict[str, np.ndarray]:
    """What the nearest neighbours are looked for among, by name."""
    posteriors = [pair.guide.posterior(part) for part in x.split(5000)]
    found = {
        "mean": torch.cat([posterior.mean for posterior in posteriors]),
        "draw": torch.cat([posterior.sample() for posterior in posteriors]),
    }
    if kind == "gaussian":
        return {f"gaussian, {how} of z": z.numpy() for how, z in found.items()}
    pieces = {f"sticks, {how} of pi": pair.model.weights(v).numpy() for how, v in found.items()}
    return pieces | {f"sticks, {how} of v": v.numpy() for how, v in found.items()}


def latents(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Both pairs on one set."""
    parts = read(name, args.data, args.limit)
    x, test = parts.train, parts.held_out
    binary = test.map(data.StaticBinarization(data.Stochastic(seed=0))).x
    epochs = args.epochs or EPOCHS[name]
    seen = [(x.x.numpy(), test.x.numpy(), "pixels")]
    runs: dict[str, Any] = {}
    for kind in ("sticks", "gaussian"):
        torch.manual_seed(args.seed)
        pair = made(kind, x.x, args)
        found = train(
            pair, x.x, args, lr=args.rate, epochs=epochs, seed=args.seed,
            transform=data.DynamicBinarization(),
        )  # fmt: skip
        estimate = log_likelihood(
            pair.model, pair.guide, binary, method=ImportanceSampling(args.num_samples)
        )
        runs[kind] = {
            "epochs": epochs,
            "training_bound": found.history[-1].elbo,
            "training_seconds": found.wall_time,
            "nll": -estimate.mean,
            "nll_standard_error": estimate.mean_standard_error,
            "nll_monte_carlo_error": estimate.mean_monte_carlo_error,
            "effective_sample_size": estimate.effective_sample_size.median().item(),
        }
        print(f"{name}, {kind}: {runs[kind]}", flush=True)
        known, new = codes(kind, pair, x.x), codes(kind, pair, test.x)
        seen += [(known[key], new[key], key) for key in known]
    labels = (x.labels.numpy(), test.labels.numpy())
    errors = {key: neighbour_errors(known, labels[0], new, labels[1]) for known, new, key in seen}
    return {
        "train": len(x),
        "test": len(test),
        "latents": args.latents,
        "hidden": args.hidden,
        "rate": args.rate,
        "warm_up": args.warm_up,
        "seed": args.seed,
        "num_samples": args.num_samples,
        "runs": runs,
        "neighbour_error": errors,
    }


def print_latents(name: str, entry: dict[str, Any]) -> None:
    print(f"\n| {name}: error of k nearest neighbours, % | k = 3 | 5 | 10 |\n|---|---|---|---|")
    for key, errors in entry["neighbour_error"].items():
        print(f"| {key} | " + " | ".join(f"{100 * e:.2f}" for e in errors.values()) + " |")
    for kind, run in entry["runs"].items():
        print(
            f"-log p(x), {kind}: {run['nll']:.2f} ± {run['nll_standard_error']:.2f} nats, "
            f"{entry['num_samples']} importance samples"
        )


def stable(seed: int, rate: float, args: argparse.Namespace) -> dict[str, Any]:
    """One run on static MNIST."""
    x, held_out = (
        torch.from_numpy(np.load(args.data / "binarized_mnist" / f"{part}.npz")["x"])[
            : args.limit
        ].float()
        for part in ("train", "valid")
    )
    torch.manual_seed(seed)
    pair = made("sticks", x, args)
    start = time.perf_counter()
    epochs = args.epochs or 50
    entry: dict[str, Any] = {"seed": seed, "rate": rate, "epochs": epochs, **_options(args)}
    try:
        found = train(pair, x, args, lr=rate, epochs=epochs, seed=seed,
                      validation=Validation(held_out, every=epochs))  # fmt: skip
    except NonFiniteError as error:
        return entry | {"stopped_by": str(error), "finite": False}
    numbers = [p for module in (pair.model, pair.guide) for p in module.parameters()]
    bounds = [record.elbo for record in found.history]
    wrong = sum(int((~p.isfinite()).sum()) for p in numbers)
    return entry | {
        "steps": found.steps,
        "non_finite_epochs": sum(not math.isfinite(bound) for bound in bounds),
        "non_finite_parameters": wrong,
        "finite": wrong == 0 and all(map(math.isfinite, bounds)),
        "training_bound": bounds[-1],
        "validation_bound": found.history[-1].validation,
        "seconds": time.perf_counter() - start,
        "compiled": found.compiled,
    }


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """What a run depends on besides rate, seed and epochs."""
    return {name: getattr(args, name) for name in ("warm_up", "hidden", "latents", "limit")}


def stability(args: argparse.Namespace, path: Path) -> None:
    """Every run that the results do not have yet, or have of other options."""
    done = report.load(path).get("stability", {}) if path.exists() else {}
    for rate in args.rates:
        for seed in args.seeds:
            key = f"rate {rate:g}, seed {seed}, {args.epochs or 50} epochs"
            if not _options(args).items() <= done.get(key, {}).items():
                entry = done[key] = stable(seed, rate, args)
                report.enter(path, "sticks", ("stability", key), entry, machine.facts(CPU))
            row = done[key]
            bounds = "stopped: " + row["stopped_by"] if "stopped_by" in row else (
                f"bound {row['training_bound']:.2f}, held out {row['validation_bound']:.2f}, "
                f"{row['non_finite_parameters']} parameters not finite"
            )  # fmt: skip
            print(f"{key}: {'finite' if row['finite'] else 'NOT FINITE'}, {bounds}", flush=True)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="+", choices=["latents", "stability"])
    parser.add_argument("--sets", nargs="+", choices=list(EPOCHS), default=list(EPOCHS))
    parser.add_argument("--epochs", type=int, help="instead of the usual (500, 50; 50)")
    parser.add_argument("--latents", type=int, default=50, help="sticks, and dimensions of z (50)")
    parser.add_argument("--hidden", type=int, default=500, help="width of both networks (500)")
    parser.add_argument("--rate", type=float, default=3e-4, help="of Adam, for latents (3e-4)")
    parser.add_argument(
        "--warm-up", type=float, default=0.2, help="share of the steps until KL counts whole (.2)"
    )
    parser.add_argument("--seed", type=int, default=0, help="for latents")
    parser.add_argument("--num-samples", type=int, default=100, help="for log p(x) (100)")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="for stability")
    parser.add_argument("--seeds", type=int, nargs="+", default=range(5), help="for stability")
    parser.add_argument("--limit", type=int, help="take the first so many data only")
    parser.add_argument("--data", type=Path, default=DATA, help=f"folder ({DATA})")
    parser.add_argument("--eager", dest="compiled", action="store_const", const=False)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=report.RESULTS, help="folder for results")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    torch.set_num_threads(args.threads)
    path = args.out / "sticks-cpu.json"
    with pyro.validation_enabled(False):
        for name in args.sets if "latents" in args.parts else ():
            entry = latents(name, args)
            report.enter(path, "sticks", ("latents", name), entry, machine.facts(CPU))
            print_latents(name, entry)
        if "stability" in args.parts:
            stability(args, path)
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What particles cost: time and memory of one compiled step, beside a step with one particle.

IWAE with K particles on a VAE 784-200-200-50, batch 20, each gradient. Memory is the bytes of all
tensors that one eager run of the pair makes (log-weights, before the backward pass), counted by
torch; it grows linearly in K, with an intercept for what has no particles (the encoder).

    python benchmarks/particles.py

Writes benchmarks/results/particles-<device>.json.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from harness import machine, report
from harness.timing import Contender, Timings, race, ratios, repeat
from torch import Tensor

from pyro_models import pairs
from pyro_models.infer import (
    IWAE,
    DoublyReparameterized,
    StandardGradient,
    Step,
    StickingTheLanding,
    log_weights,
)
from pyro_models.infer.inspection import footprint

COUNTS = (1, 2, 5, 10, 20, 50)
BATCH = 20
GRADIENTS = (StandardGradient(), StickingTheLanding(), DoublyReparameterized())
ADAM = partial(torch.optim.Adam, lr=1e-3)


def batches(device: torch.device) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(10, BATCH, 784, generator=generator)
    return list((draws < 0.2).float().to(device))


def contender(count: int, gradient: Any, device: torch.device) -> Contender:
    def start() -> Any:
        torch.manual_seed(0)
        pair = pairs.vae(784, latent_dim=50, hidden=(200, 200), objective=IWAE(count, gradient))
        pair.model.to(device)
        pair.guide.to(device)
        step = Step(pair.model, pair.guide, pair.objective, ADAM)
        return repeat(step, batches(device))

    return Contender(f"{type(gradient).__name__}, K = {count}", start)


def memory(count: int) -> int:
    """Bytes of the tensors of one run with K particles."""
    pair = pairs.vae(784, latent_dim=50, hidden=(200, 200))
    x = batches(torch.device("cpu"))[0]
    log_weights(pair.model, pair.guide, x, num_particles=count)  # the first run is also a dry one
    return footprint(lambda: log_weights(pair.model, pair.guide, x, num_particles=count))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    device = torch.device(args.device)
    kinds: dict[str, Any] = {}
    for gradient in GRADIENTS[: args.gradients]:
        runs = [contender(count, gradient, device) for count in args.counts]
        timings = race(runs, rounds=args.rounds, chunk_seconds=args.chunk)
        kinds[type(gradient).__name__] = [
            _row(count, timing, timings[0])
            for count, timing in zip(args.counts, timings, strict=True)
        ]
    sizes = [memory(count) for count in args.counts]
    slope, intercept = np.polyfit(args.counts, sizes, 1)
    residual = np.abs(np.polyval([slope, intercept], args.counts) - sizes).max()
    return {
        "benchmark": "particles",
        "machine": machine.facts(device),
        "batch": BATCH,
        "steps": kinds,
        "memory": {
            "bytes": dict(zip(args.counts, sizes, strict=True)),
            "bytes_a_particle": float(slope),
            "bytes_without": float(intercept),
            "largest_residual_over_bytes_a_particle": float(residual / slope),
        },
    }


def _row(count: int, timing: Timings, first: Timings) -> dict[str, Any]:
    return {
        "K": count,
        "seconds_per_step": timing.summary(),
        "time_over_one_particle": ratios(timing, first),
    }


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--chunk", type=float, default=0.3, help="seconds of each in a round")
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--gradients", type=int, default=len(GRADIENTS), help="how many of them")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=report.RESULTS, help="folder for results")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    machine.share_cores(args.threads)
    with pyro.validation_enabled(False):
        result = measure(args)
    print("| gradient | K | time ÷ K = 1, median | µs a step |\n|---|---|---|---|")
    for name, rows in result["steps"].items():
        for row in rows:
            ratio, micro = row["time_over_one_particle"], 1e6 * row["seconds_per_step"]["median"]
            print(f"| {name} | {row['K']} | {ratio['median']:.2f} | {micro:.0f} |")
    memory_ = result["memory"]
    print(
        f"memory: {memory_['bytes_a_particle'] / 2**20:.2f} MiB a particle and "
        f"{memory_['bytes_without'] / 2**20:.2f} MiB without any; off a straight line by at most "
        f"{memory_['largest_residual_over_bytes_a_particle']:.2f} particles"
    )
    path = args.out / f"particles-{args.device}.json"
    report.save(result, path)
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

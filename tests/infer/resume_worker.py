"""A process for ``test_resume``: fits, is killed on the way, or resumes and compares.

python -m tests.infer.resume_worker DIRECTORY {die,busy,resume} {eager,compiled} [STEP]
"""

import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_models.infer.checkpoint import Checkpoint
from pyro_models.infer.fit import fit
from pyro_models.infer.history import Fit
from pyro_models.infer.remedies import FreeBits, Remedies
from pyro_models.infer.schedules import InverseEpoch, LinearWarmup
from tests.infer.fit_cases import adam, network_pair, normal_data

EPOCHS = 6
STEPS_AN_EPOCH = 7
STEPS = EPOCHS * STEPS_AN_EPOCH


class Noise:
    """Adds noise to each batch, so that a transform's draws count too; may kill the process."""

    def __init__(self, die_after: int | None):
        self.calls = -3  # what fit itself looks at before the first step
        self.die_after = die_after

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.die_after is not None and self.calls > self.die_after:
            os.kill(os.getpid(), signal.SIGKILL)
        return x + 0.01 * torch.randn(x.shape)


def train(compiled: bool, die_after: int | None = None, **options: Any) -> Fit:
    decoder, encoder = network_pair()
    return fit(
        decoder,
        encoder,
        normal_data(20 * STEPS_AN_EPOCH - 9, 3),  # the last batch is odd
        optimizer=adam,
        epochs=EPOCHS,
        batch_size=20,
        transform=Noise(die_after),
        schedule=InverseEpoch(),
        kl=Remedies({"z": LinearWarmup(25, end=1.5)}, FreeBits(0.01)),
        validation=normal_data(30, 3, seed=1),
        seed=3,
        compiled=compiled,
        progress=False,
        **options,
    )


def equal(one: Fit, other: Fit) -> bool:
    """Whether two fits are the same bit for bit, times aside."""
    rows = [
        [(e.step, e.epoch, e.elbo, e.validation, e.lr, e.kl_weight, e.kl) for e in f.history]
        for f in (one, other)
    ]
    tensors = [
        {**f.parameters, **dict(f.guide.named_buffers())}  # type: ignore[attr-defined]
        for f in (one, other)
    ]
    same = all(torch.equal(tensors[0][n], tensors[1][n]) for n in tensors[0])
    kept = all(e.kl and len(e.kl["z"]) == 2 for e in one.history)
    return same and kept and rows[0] == rows[1] and len(rows[0]) == EPOCHS


def main(directory: str, what: str, how: str, step: str = "") -> int:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    checkpoint = Checkpoint(Path(directory), every_steps=1 if what == "busy" else 4)
    compiled = how == "compiled"
    if what in ("die", "busy"):
        train(compiled, int(step) if step else None, checkpoint=checkpoint)
        return 0
    resumed = train(compiled, checkpoint=checkpoint, resume=True)
    whole = train(compiled)
    if compiled and not (resumed.compiled and whole.compiled):
        print(resumed.fallback_reason, whole.fallback_reason)
        return 2
    return 0 if equal(resumed, whole) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

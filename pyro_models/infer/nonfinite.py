"""Finding the step and the site at which a fit broke, and leaving it as it was before.

A loss or parameter that is not finite is noticed late on a device, where nothing waits for each
step, and by then the parameters are spoilt. So a snapshot is kept, from which training is replayed
step by step (it is reproducible) until the first bad step is found.
"""

import pyro
import torch
from torch import Tensor

from pyro_models.errors import CheckpointError, NonFiniteError, PyroModelsError
from pyro_models.infer.arrays import Tensors
from pyro_models.infer.record import LogWeights
from pyro_models.infer.trainer import Snapshot, Trainer

# Steps between snapshots: a copy of all state costs about as much as one or two steps.
KEEP_EVERY = 1000

# What distributions and factorisations raise when they meet NaN in a program that checks them.
COMPLAINTS = (ValueError, torch.linalg.LinAlgError)

_ADVICE = (
    "Lower the learning rate, keep scales away from zero (a floor, softplus instead of exp), and "
    "check that the data lie in the support of the likelihood."
)


class Watch:
    """Keeps a snapshot of a training, and explains what went wrong since.

    Args:
        trainer: The training.
    """

    def __init__(self, trainer: Trainer):
        self._trainer = trainer
        self._snapshot: Snapshot = trainer.snapshot()

    @property
    def due(self) -> bool:
        """Whether enough steps have gone by for another snapshot."""
        return self._trainer.position.step - self._snapshot.position.step >= KEEP_EVERY

    def verify(self) -> None:
        """Make sure that every parameter is finite; waits for the device.

        Raises:
            NonFiniteError: If one is not.
        """
        if not all_finite(list(self._trainer.step.parameters().values())):
            raise self.explain()

    def keep(self) -> None:
        """Take a snapshot, unless the parameters are bad.

        Raises:
            NonFiniteError: If a parameter is not finite.
        """
        self.verify()
        self._snapshot = self._trainer.snapshot()

    def explain(self, complaint: Exception | None = None) -> Exception:
        """Find the first bad step since the snapshot, and go back to just before it.

        Args:
            complaint: What the step raised, if it did.

        Returns:
            An error that names step and sites; ``complaint`` itself if nothing was not finite.
        """
        trainer = self._trainer
        last = trainer.position.step + 1
        trainer.restore(self._snapshot)
        try:
            batch = self._replay(last)
        except CheckpointError:  # a loader that does not repeat itself
            batch = None
        if batch is None:
            trainer.restore(self._snapshot)
            first = self._snapshot.position.step
            return complaint or NonFiniteError(
                f"the loss or a parameter became NaN or infinite between steps {first + 1} and "
                f"{last}, and a replay did not show it again; the parameters are those of step "
                f"{first}. {_ADVICE}"
            )
        return self._diagnose(batch, complaint)

    def _replay(self, last: int) -> Tensors | None:
        """Repeat steps until one is bad, stop before it and return its batch."""
        trainer = self._trainer
        while trainer.position.step < last and trainer.position.epoch < trainer.course.epochs:
            for batch in trainer.epoch():
                before = trainer.snapshot()
                if not self._goes_well(batch):
                    trainer.restore(before)
                    return batch
                if trainer.position.step >= last:
                    return None
            trainer.end_epoch()
        return None

    def _goes_well(self, batch: Tensors) -> bool:
        try:
            loss = self._trainer.advance(batch)
        except COMPLAINTS:
            return False
        return all_finite([loss, *self._trainer.step.parameters().values()])

    def _diagnose(self, batch: Tensors, complaint: Exception | None) -> Exception:
        number = self._trainer.position.step + 1
        before = self._trainer.snapshot()
        sites = self._bad_sites(batch)
        what = f"at site {_names(sites)} the value or log-density"
        if not sites:
            self._trainer.restore(before)
            sites = self._bad_gradients(batch)
            what = f"the gradient of {_names(sites)}"
        if not sites:
            self._trainer.restore(before)
            sites = self._bad_updates(batch)
            what = f"the updated {_names(sites)}" if sites else "the loss"
        self._trainer.restore(before)
        if complaint is not None and not sites:
            return complaint
        return NonFiniteError(
            f"step {number}: {what} is NaN or infinite; the parameters are left as they were "
            f"before this step. {_ADVICE}",
            step=number,
            sites=sites,
        )

    def _run(self, batch: Tensors) -> LogWeights:
        step = self._trainer.step
        kwargs = dict(self._trainer.kwargs)
        return step.objective.weights(step.model, step.guide, tuple(batch), kwargs)

    def _bad_sites(self, batch: Tensors) -> tuple[str, ...]:
        """Names of sites with a value or log-density that is not finite, guide first."""
        try:
            # Distributions would refuse NaN and so hide the sites that come after.
            with pyro.validation_enabled(False), torch.no_grad():
                weights = self._run(batch)
        except (PyroModelsError, *COMPLAINTS):
            return ()
        sites = [*weights.guide_sites.values(), *weights.model_sites.values()]
        bad = [s.name for s in sites if not all_finite([s.value, s.log_prob])]
        return tuple(dict.fromkeys(bad))

    def _bad_gradients(self, batch: Tensors) -> tuple[str, ...]:
        """Names of parameters whose gradient is not finite."""
        parameters = self._trainer.step.parameters()
        try:
            with pyro.validation_enabled(False), torch.enable_grad():
                _, surrogate = self._trainer.step.objective.estimate(self._run(batch))
                values = list(parameters.values())
                gradients = torch.autograd.grad(surrogate, values, allow_unused=True)
        except (PyroModelsError, *COMPLAINTS):
            return ()
        named = zip(parameters, gradients, strict=True)
        return tuple(name for name, g in named if g is not None and not all_finite([g]))

    def _bad_updates(self, batch: Tensors) -> tuple[str, ...]:
        """Names of parameters that this step makes bad, though its gradients are finite."""
        try:
            self._trainer.advance(batch)
        except COMPLAINTS:
            return ()
        parameters = self._trainer.step.parameters()
        return tuple(name for name, value in parameters.items() if not all_finite([value]))


def all_finite(tensors: list[Tensor]) -> bool:
    """Whether no tensor has NaN or infinity; waits for the device once.

    Example:
        >>> all_finite([torch.zeros(2), torch.tensor([1, 2])])
        True
        >>> all_finite([torch.tensor(torch.inf)])
        False
    """
    floating = [t.detach() for t in tensors if t.is_floating_point() and t.numel()]
    if not floating:
        return True
    # A sum is an order of magnitude cheaper than asking every element; it can only err by overflow.
    if bool(torch.stack([t.sum().double() for t in floating]).isfinite().all()):
        return True
    return all(bool(t.isfinite().all()) for t in floating)


def _names(sites: tuple[str, ...]) -> str:
    shown = ", ".join(repr(name) for name in sites[:5])
    return shown if len(sites) <= 5 else f"{shown} and {len(sites) - 5} more"

"""What ``fit`` does before its first step: check options, place the pair, read the data."""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass
from itertools import islice
from typing import Any

import torch
from torch import nn

from pyro_models.errors import CheckpointError, DataError, OptionError
from pyro_models.infer import checkpoint as files
from pyro_models.infer.alternation import Alternation, Turns
from pyro_models.infer.batches import Batches, LoaderBatches, Transform, make_batches
from pyro_models.infer.checkpoint import Checkpoint, Saved
from pyro_models.infer.inspection import accepts_missing
from pyro_models.infer.optimizer_probe import OptimizerProbe
from pyro_models.infer.pair_checks import (
    check_arguments,
    check_scale,
    device_of,
    keywords,
    modules_of,
)
from pyro_models.infer.random_state import Stream, derive_seed
from pyro_models.infer.remedies import Remedies
from pyro_models.infer.schedules import Schedule
from pyro_models.infer.step import Step
from pyro_models.infer.stopping import EarlyStopping
from pyro_models.infer.trainer import Course
from pyro_models.infer.validation import HeldOut, Validation, evaluation_mode
from pyro_models.infer.weights import Program

# Compiling takes 5 to 15 seconds and saves about a millisecond a step. A number of steps, not a
# measured time, so that a resumed or repeated fit decides alike.
COMPILE_FROM_STEPS = 10_000

# Held-out data are evaluated without gradients, in batches of at least this size.
_EVALUATION_BATCH = 1024
_SUPPORT_BATCH = 4096
_PRECISIONS = (torch.float32, torch.float64)


def check_options(
    epochs: int,
    precision: torch.dtype,
    validation: Any,
    early_stopping: EarlyStopping | None,
    checkpoint: Checkpoint | None,
    resume: bool,
) -> None:
    """Refuse what cannot work before any of the data is touched.

    Raises:
        OptionError: With the fix in the message.
    """
    if epochs < 1:
        raise OptionError(f"epochs is {epochs}; give at least 1")
    if precision not in _PRECISIONS:
        raise OptionError(
            f"precision is {precision}; give torch.float32 or torch.float64 (log-densities summed "
            "in fewer digits are no bounds)"
        )
    if early_stopping is not None and validation is None:
        raise OptionError(
            "early_stopping needs held-out data to judge by; give validation=..., such as a part "
            "of the data that is not trained on"
        )
    if resume and checkpoint is None:
        raise OptionError("resume=True needs to know from where; give checkpoint=Checkpoint(...)")


def read_checkpoint(checkpoint: Checkpoint | None, resume: bool) -> Saved | None:
    """The checkpoint to resume from, if any.

    Raises:
        CheckpointError: If there is none or it is damaged; or if there is one and it would be mixed
            with those of a new fit.
    """
    if checkpoint is None:
        return None
    if resume:
        return files.read(checkpoint.path)
    if files.exists(checkpoint.path):
        raise CheckpointError(
            f"{checkpoint.path} holds checkpoints of an earlier fit; continue it with resume=True, "
            "or give another directory, or remove this one"
        )
    return None


def resolve_device(device: torch.device | str) -> torch.device:
    """A device that exists.

    Raises:
        OptionError: If it does not.

    Example:
        >>> resolve_device("cpu")
        device(type='cpu')
    """
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise OptionError(f"device is {device!r}; give 'cpu', 'cuda' or 'cuda:<number>'") from error
    if found.type == "cpu":
        return torch.device("cpu")
    if found.type != "cuda":
        raise OptionError(f"device is {device!r}; fits run on 'cpu' and 'cuda'")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (found.index or 0) >= count:
        raise OptionError(f"device is {device!r} and there are {count} CUDA devices; try 'cpu'")
    return torch.device("cuda", torch.cuda.current_device() if found.index is None else found.index)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Set torch's default floating-point type inside, so that programs' constants have it."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def plan(
    epochs: int,
    batches: Batches,
    schedule: Schedule | None,
    remedies: Remedies,
    compiled: bool | None,
    saved: Saved | None,
) -> Course:
    """Decide what to do at each step; what a saved fit decided stays decided."""
    total = batches.per_epoch * epochs if batches.per_epoch is not None else None
    if compiled is None:
        worthwhile = total is not None and total >= COMPILE_FROM_STEPS
        compiled = bool(saved.record["compiled"]) if saved is not None else worthwhile
    odd_compiled = compiled and epochs >= COMPILE_FROM_STEPS
    if saved is not None:
        odd_compiled = compiled and bool(saved.record["odd_compiled"])
    return Course(epochs, total, schedule, remedies, compiled, batches.odd, odd_compiled)


@dataclass(frozen=True, eq=False)
class Setup:
    """The pair, and what all that is made for the fit has in common."""

    model: Program
    """The model."""
    guide: Program
    """The guide."""
    modules: tuple[nn.Module, ...]
    """The modules among them, or that they are methods of."""
    device: torch.device
    """Where the fit runs."""
    precision: torch.dtype
    """Floating-point type of parameters and data."""
    seed: int
    """Of all randomness."""
    transform: Transform | None
    """Applied to each batch."""

    @staticmethod
    def make(
        model: Program,
        guide: Program,
        data: Any,
        device: torch.device | str | None,
        precision: torch.dtype,
        seed: int,
        transform: Transform | None,
    ) -> "Setup":
        """Find the modules and the device."""
        modules = modules_of(model, guide)
        place = resolve_device(device_of(modules, data) if device is None else device)
        return Setup(model, guide, modules, place, precision, seed, transform)

    def move_modules(self) -> None:
        """Bring the modules to the device and the precision, in place."""
        for module in self.modules:
            module.to(self.device, self.precision)

    def training_batches(self, data: Any, batch_size: int | None, will_save: bool) -> Batches:
        """Shuffled minibatches; warns if checkpoints could not take up their order again."""
        place, transform, missing = self.device, self.transform, accepts_missing(self.model)
        batches = make_batches(
            data, batch_size, place, self.precision, self.seed, transform, missing
        )
        inner = getattr(batches, "batches", batches)
        if will_save and isinstance(inner, LoaderBatches):
            inner.warn_if_unrepeatable()
        return batches

    def check(self, step: Step, batches: Batches) -> dict[str, Any]:
        """Make sure that pair and data go together, make the parameters, and find the keywords.

        Raises:
            DataError: If the programs cannot be called with the data.
            SupportError: If the model refuses the data.
            OptionError: If minibatches would be weighed wrongly.
        """
        first = next(batches.epoch(0), None)
        if first is None:
            raise DataError("the DataLoader gives no batch; check its dataset and drop_last")
        kwargs = keywords(self.model, self.guide, batches.num_data)
        check_arguments(self.model, "model", first, kwargs)
        check_arguments(self.guide, "guide", first, kwargs)
        self._check_support(batches)
        step.initialize(*first, **kwargs)
        with evaluation_mode(self.modules):
            check_scale(step.objective, step.model, step.guide, first, kwargs, batches.num_data)
        return kwargs

    def _check_support(self, batches: Batches) -> None:
        check: Callable[..., None] | None = getattr(self.model, "check", None)
        if check is None:
            return
        in_order = batches.in_order(_SUPPORT_BATCH)
        reads = isinstance(getattr(in_order, "batches", in_order), LoaderBatches)
        for batch in islice(in_order.epoch(0), 1 if reads else None):
            check(*batch[: _most_arguments(check)])

    def held_out(
        self, validation: Any, training: Batches, step: Step, kwargs: Mapping[str, Any]
    ) -> HeldOut | None:
        """What evaluates the held-out bound, if there are held-out data."""
        if validation is None:
            return None
        given = validation if isinstance(validation, Validation) else Validation(validation)
        largest = training.num_data or _EVALUATION_BATCH  # a plate is no larger than the whole set
        size = min(_EVALUATION_BATCH, largest)
        place, transform, missing = self.device, self.transform, accepts_missing(self.model)
        batches = make_batches(given.data, size, place, self.precision, None, transform, missing)
        batch = next(batches.epoch(0), None)
        if batch is None:
            raise DataError("the held-out DataLoader gives no batch; check its dataset")
        check_arguments(self.model, "model", batch, kwargs)
        self._check_support(batches)
        seed = derive_seed(self.seed, Stream.VALIDATION)
        return HeldOut(batches, given.every, step, self.modules, kwargs, self.device, seed)

    def turns(
        self,
        alternation: Alternation | None,
        step: Step,
        batches: Batches,
        kwargs: Mapping[str, Any],
    ) -> Turns | None:
        """What freezes model and guide by turns, if they are to take turns."""
        if alternation is None:
            return None
        (first, *_) = islice(batches.epoch(0), 1)
        return Turns(alternation, step, first, kwargs)

    def config(
        self,
        batches: Batches,
        held_out: HeldOut | None,
        step: Step,
        course: Course,
        probe: OptimizerProbe,
        options: Mapping[str, Any],
    ) -> dict[str, Any]:
        """What a resumed fit must have in common with the one that was saved."""
        return {
            "seed": self.seed,
            "num_data": batches.num_data,
            "data": batches.fingerprint(),
            "validation": held_out.batches.fingerprint() if held_out is not None else None,
            "device": self.device.type,
            "precision": str(self.precision),
            "transform": describe(self.transform),
            "objective": repr(step.objective),
            "optimizer": describe(probe.factory),
            "schedule": describe(course.schedule),
            "kl_weight": describe(course.remedies.weight),
            "free_bits": describe(course.remedies.free_bits),
            "compiled": course.compiled,
            "parameters": {
                name: f"{tuple(p.shape)} {p.dtype}" for name, p in step.parameters().items()
            },
            **{name: describe(value) for name, value in options.items()},
        }


def _most_arguments(check: Callable[..., None]) -> int:
    """How many tensors of a batch a model's check looks at: all, or only the first."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in kinds for p in inspect.signature(check).parameters.values())


def describe(value: Any) -> str:
    """A text that is the same in another process: values by repr, functions by name.

    Example:
        >>> describe(functools.partial(torch.optim.Adam, lr=0.1))
        'torch.optim.adam.Adam(lr=0.1)'
    """
    if isinstance(value, functools.partial):
        given = [repr(a) for a in value.args] + [f"{k}={v!r}" for k, v in value.keywords.items()]
        return f"{describe(value.func)}({', '.join(given)})"
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, Mapping):
        return str({name: describe(one) for name, one in value.items()})
    if value is None or isinstance(value, int | float | str) or is_dataclass(value):
        return repr(value)
    return f"{type(value).__module__}.{type(value).__qualname__}"

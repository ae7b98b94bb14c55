"""``fit``: train any Pyro pair on data, from options to the record of how it went."""

import functools
from collections.abc import Sequence
from typing import Any

import torch

from pyro_models.infer.alternation import Alternation
from pyro_models.infer.batches import Transform
from pyro_models.infer.checkpoint import Checkpoint
from pyro_models.infer.history import Fit
from pyro_models.infer.objectives import ELBO, Objective
from pyro_models.infer.preparation import (
    OptimizerProbe,
    Setup,
    check_options,
    default_dtype,
    plan,
    read_checkpoint,
)
from pyro_models.infer.progress import make_display
from pyro_models.infer.random_state import RandomState, Stream, choose_seed, derive_seed, isolated
from pyro_models.infer.remedies import Remedies, as_remedies
from pyro_models.infer.run import Callback, Run
from pyro_models.infer.schedules import KLSchedule, Schedule
from pyro_models.infer.step import OptimizerFactory, Step
from pyro_models.infer.stopping import EarlyStopping, Interrupt, StopReason
from pyro_models.infer.trainer import Trainer
from pyro_models.infer.weights import Program


def fit(
    model: Program,
    guide: Program,
    data: Any,
    *,
    objective: Objective | None = None,
    optimizer: OptimizerFactory = functools.partial(torch.optim.Adam, lr=1e-3),  # noqa: B008
    epochs: int = 100,
    batch_size: int | None = 128,
    transform: Transform | None = None,
    schedule: Schedule | None = None,
    kl: KLSchedule | Remedies | None = None,
    alternation: Alternation | None = None,
    validation: Any = None,
    early_stopping: EarlyStopping | None = None,
    device: torch.device | str | None = None,
    precision: torch.dtype = torch.float32,
    compiled: bool | None = None,
    seed: int | None = None,
    progress: bool = True,
    checkpoint: Checkpoint | None = None,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
) -> Fit:
    r"""Fit a pair to data by stochastic variational inference.

    Each step takes a minibatch of B of the N data and follows the gradient of the objective, for
    the ELBO :math:`\frac NB \sum_{i \in \text{batch}} \mathcal L_i`. Modules are trained in place;
    parameters made with ``pyro.param`` live in the returned record, never in Pyro's global store,
    so that two fits do not meet and running a notebook's cell again trains such a pair afresh.

    A model with a parameter ``num_data`` is given N, and so is its guide. Latents outside the data
    plate need it, for the scale N/B. A guide with parameters of its own for each datum (an
    autoguide of local latents) must know which data a batch holds: use ``batch_size=None``.

    The fit draws from a fork of torch's generators: what is drawn after it does not depend on it.
    The same seed, data, options, machine and number of threads give the same parameters bit for
    bit, also when a run was killed and resumed. Validation and callbacks have forks of their own
    and leave training alone. A ``DataLoader``'s order repeats as far as it depends on torch's
    generators; what a dataset draws from NumPy or Python, or in persistent workers, does not.

    Args:
        model: A Pyro program.
        guide: A Pyro program with the same arguments, which samples the model's latents.
        data: A tensor, array or list of numbers with one row a datum; a tuple of them, given to
            the programs as several positional arguments; a record with the attribute ``x``; a torch
            ``Dataset`` or ``DataLoader``. What fits is kept on the device and shuffled there.
        objective: What to maximise; ``None`` is ``ELBO()``.
        optimizer: Makes a torch optimiser from parameters.
        epochs: Passes through the data.
        batch_size: B. ``None``, or N and more, take all data at each step. The last batch of an
            epoch may be smaller; no datum is left out.
        transform: Applied to each batch on the device, such as a fresh binarisation; it gets the
            batch's tensors and returns a tensor or a tuple of them. Held-out data pass through it.
        schedule: Factor on the learning rate: ``InverseEpoch()``, ``Cosine()``, ...
        kl: Against latents that collapse onto their prior: the weight of the KL divergence, such
            as ``LinearWarmup(1000)`` (in steps), ``CyclicalWarmup(1000)`` or ``Beta(4.0)``, or
            ``Remedies(weight, free_bits)``, each for all latents or by name. Bounds that are
            reported always have weight 1 and no free bits.
        alternation: ``Alternation(e_steps, m_steps)``: variational EM, steps of the guide and of
            the model by turns. ``None`` takes steps of both.
        validation: Held-out data of the same kinds as ``data``, or ``Validation(data, every=3)``.
        early_stopping: ``EarlyStopping(patience)`` on the held-out bound. The fit then ends with
            the parameters of the best evaluation, whatever it is that ends it.
        device: Where to fit; modules are moved there. ``None`` is where the modules' parameters
            are, else where the data are. Tensors that a program makes itself are its own affair.
        precision: ``torch.float32`` or ``torch.float64``; modules and floating-point data are cast,
            and torch's default type is set to it for the time of the fit.
        compiled: Whether to compile the step into one graph; ``None`` compiles from 10,000 steps.
            An odd last batch runs eagerly unless there are as many of them.
        seed: Of all randomness; ``None`` draws one from torch's global generator.
        progress: Whether to show a bar in a terminal or notebook, and sparse lines elsewhere.
        checkpoint: ``Checkpoint(directory)``: where and how often to write checkpoints.
        resume: Continue from the newest checkpoint. ``epochs`` may be larger than before; all else
            must be as it was.
        callbacks: Functions of an ``EpochEnd``, called at the end of each epoch; one that raises
            ``StopFit`` ends the fit. What they keep themselves is not part of a checkpoint.

    Returns:
        The record of the fit. Ctrl-C ends a fit after the running step, and what was reached is
        returned; a second Ctrl-C raises ``KeyboardInterrupt``.

    Raises:
        OptionError: If an option, or a combination of them, cannot work.
        DataError: If the data are empty, not finite, or do not fit the model's arguments.
        SupportError: If the model refuses the data (its ``check(x)``).
        NonFiniteError: If a loss, gradient or parameter becomes NaN or infinite. It names step and
            sites; parameters are left as they were before that step.
        CheckpointError: If a checkpoint cannot be written, or be resumed from.

    References:
        Hoffman et al. 2013, "Stochastic Variational Inference", https://arxiv.org/abs/1206.7051
        Kingma and Welling 2014, "Auto-Encoding Variational Bayes", https://arxiv.org/abs/1312.6114

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(mean, 1.0), obs=x)
        >>> def guide(x):
        ...     loc = pyro.param("loc", torch.tensor(0.0))
        ...     pyro.sample("mean", dist.Normal(loc, 0.5))
        >>> x = torch.tensor([1.0, 2.0, 3.0])  # the posterior is N(1.5, 0.5²)
        >>> adam = functools.partial(torch.optim.Adam, lr=0.05)
        >>> result = fit(model, guide, x, optimizer=adam, epochs=300, seed=0, progress=False)
        >>> result.stop_reason, result.steps
        (<StopReason.EPOCHS: 'all epochs are done'>, 300)
        >>> bool(abs(result.parameters["loc"] - 1.5) < 0.2)
        True
    """
    check_options(epochs, precision, validation, early_stopping, checkpoint, resume)
    remedies = as_remedies(kl)
    saved = read_checkpoint(checkpoint, resume)
    if saved is not None and seed is None:
        seed = int(saved.record["seed"])
    seed = choose_seed(seed)
    setup = Setup.make(model, guide, data, device, precision, seed, transform)
    with isolated(setup.device, derive_seed(seed, Stream.TRAINING)), default_dtype(precision):
        setup.move_modules()
        batches = setup.training_batches(data, batch_size, will_save=checkpoint is not None)
        random = RandomState(setup.device, batches.generators)
        probe = OptimizerProbe(optimizer)
        course = plan(epochs, batches, schedule, remedies, compiled, saved)
        step = Step(
            model,
            guide,
            objective or ELBO(),
            probe,
            compiled=course.compiled,
            free_bits=remedies.free_bits,
        )
        step.kl_weight = remedies.weights_at(course.progress(0, 0))
        with random.preserved():
            kwargs = setup.check(step, batches)
            held_out = setup.held_out(validation, batches, step, kwargs)
            turns = setup.turns(alternation, step, batches, kwargs)
        config: dict[str, Any] = {}
        if checkpoint is not None:
            options = {
                "batch_size": batch_size,
                "early_stopping": early_stopping,
                "alternation": alternation,
            }
            config = setup.config(batches, held_out, step, course, probe, options)
        run = Run(
            Trainer(step, batches, course, random, kwargs, turns),
            held_out=held_out,
            early_stopping=early_stopping,
            checkpoint=checkpoint,
            callbacks=tuple(callbacks),
            config=config,
            seed=seed,
            probe=probe,
        )
        if saved is not None:
            run.load(saved)
        reason = _supervised(run, progress)
    return _record(run, reason, seed)


def _supervised(run: Run, progress: bool) -> StopReason:
    """Let a run go, with a display and with Ctrl-C in hand."""
    trainer = run.trainer
    display = make_display(progress, trainer.position.step, trainer.course.total_steps)
    try:
        with Interrupt() as interrupt:
            return run.go(display, interrupt)
    finally:
        display.close()


def _record(run: Run, reason: StopReason, seed: int) -> Fit:
    step = run.trainer.step
    found = run.best.step is not None
    return Fit(
        model=step.model,
        guide=step.guide,
        parameters={name: p.detach() for name, p in step.parameters().items()},
        history=tuple(run.history),
        steps=run.trainer.position.step,
        num_data=run.trainer.batches.num_data,
        best_step=run.best.step,
        best_validation=run.best.value if found else None,
        restored_best=run.has_best,
        wall_time=run.seconds,
        stop_reason=reason,
        stop_message=run.message,
        seed=seed,
        compiled=run.trainer.course.compiled and step.fallback_reason is None,
        fallback_reason=step.fallback_reason,
    )

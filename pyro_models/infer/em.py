"""Expectation-maximisation for models with exact E- and M-steps, on all data or stepwise."""

import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from pyro_models.errors import NonFiniteError, OptionError
from pyro_models.infer.history import EpochRecord, Fit
from pyro_models.infer.inspection import as_arguments
from pyro_models.infer.progress import Display, Glance, make_display
from pyro_models.infer.random_state import Stream, choose_seed, derive_seed
from pyro_models.infer.stepwise import Averaging, Stepwise, SupportsStepwise
from pyro_models.infer.stopping import Interrupt, StopReason
from pyro_models.infer.weights import Program
from pyro_models.options import positive_int

# A bound may fall by rounding: so many of its last digits, with the square root of the data's
# number, as errors of one sign or the other add up.
_ROUNDING = 64.0


class Evidence(Protocol):
    """What an E-step gives: the exact posterior, with log p(x) from the same pass.

    Instead of ``log_prob`` it may have ``bound``, nats per datum, where E- and M-steps raise a
    lower bound of log p(x).
    """

    log_prob: Tensor
    """log p(x_n) under the parameters of the E-step, ``(N,)``, or their mean."""


@runtime_checkable
class SupportsEM(Protocol):
    """A model with exact E- and M-steps.

    It may have more: ``check(x)`` refuses data, ``initialize(x, generator=...)`` draws starting
    values (for ``restarts``), ``condense(x)`` gives what full E- and M-steps need of the data,
    ``log_prior()`` is added to N log-densities where the M-step maximises a posterior density, and
    ``statistics`` with ``maximize_statistics`` allow stepwise EM.
    """

    def posterior(self, x: Any) -> Any:
        """The E-step: p(z | x) under the present parameters."""

    def maximize(self, x: Any, posterior: Any) -> None:
        """The M-step: set the parameters to what maximises E log p(x, z) under a posterior."""


def em(
    model: nn.Module,
    x: Any,
    *,
    guide: Program | None = None,
    epochs: int = 1000,
    tolerance: float = 1e-8,
    restarts: int | None = None,
    start: Any = None,
    stepwise: Stepwise | None = None,
    seed: int | None = None,
    progress: bool = True,
) -> Fit:
    r"""Fit a model with exact E- and M-steps by expectation-maximisation.

    .. math::
        q_n(z) = p_{\theta}(z \mid x_n), \qquad
        \theta \leftarrow \operatorname*{argmax}_{\theta'}
            \sum_n \mathbb E_{q_n}[\log p_{\theta'}(x_n, z)]

    Both are steps of coordinate ascent on the ELBO: the first makes it equal to
    :math:`\log p_\theta(x)`, the second raises it, so that the likelihood never falls. The model
    says how, by ``posterior(x)`` and ``maximize(x, posterior)``; ``GaussianMixture``,
    ``ProbabilisticPCA`` and ``FactorAnalysis`` do. For models without them there is ``fit``, whose
    option ``alternation`` takes the two steps by gradients.

    The model is trained in place, on its own device and in its own floating type
    (``model.double()`` for more digits); Ctrl-C ends it after a whole E- and M-step.

    Args:
        model: A module with ``posterior`` and ``maximize``.
        x: Data ``(N, ...)``: a tensor, array or record, as for ``fit``.
        guide: A Pyro program for the record, for what is asked of a fit later on.
        epochs: The most M-steps; of stepwise EM, passes through the data.
        tolerance: The fit ends when an epoch raises the bound by less, in nats per datum.
        restarts: How many times to start, from ``model.initialize(x, generator=...)``, and keep the
            best bound. ``None`` goes on from the parameters that the model has.
        start: What kind of start, for the model's ``initialize``, such as ``RandomData()`` of
            ``pyro_models.starts``; its own default if not given.
        stepwise: ``Stepwise(batch_size)``: M-steps from running averages over minibatches.
        seed: Of restarts and minibatches; ``None`` draws one from torch's global generator.
        progress: Whether to show progress.

    Returns:
        The record: one entry of the history an epoch, the bound *after* that epoch's M-step (of
        stepwise EM, the mean over the epoch), nats per datum.

    Raises:
        OptionError: If the model lacks the methods, or an option cannot work.
        DataError: If the data are empty, not finite, or refused by ``model.check``. NaN is let pass
            where the model takes it for missing (``accepts_missing``).
        NonFiniteError: If the bound becomes NaN or infinite; the parameters are those before.

    Warns:
        UserWarning: If the bound falls by more than rounding, which exact steps never let it.

    References:
        Dempster, Laird and Rubin 1977, https://doi.org/10.1111/j.2517-6161.1977.tb01600.x
        Neal and Hinton 1998, https://doi.org/10.1007/978-94-011-5014-9_12
        Cappé and Moulines 2009 (stepwise), https://arxiv.org/abs/0712.4273

    Example:
        >>> from types import SimpleNamespace
        >>> class Two(nn.Module):  # x ~ 1/2 N(m_1, 1) + 1/2 N(m_2, 1)
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.means = nn.Parameter(torch.tensor([-1.0, 1.0]))
        ...     def posterior(self, x):
        ...         joint = -0.5 * (x[:, None] - self.means) ** 2 - math.log(2 * math.tau**0.5)
        ...         return SimpleNamespace(log_prob=joint.logsumexp(1), r=joint.softmax(1))
        ...     def maximize(self, x, posterior):
        ...         self.means.copy_((posterior.r.T @ x) / posterior.r.sum(0))
        >>> x = torch.tensor([-3.0, -2.0, 4.0, 5.0])
        >>> result = em(Two(), x, progress=False)
        >>> result.stop_reason.name, result.model.means.tolist()
        ('CONVERGED', [-2.5, 4.5])
    """
    _check_options(model, epochs, tolerance, restarts, stepwise)
    if start is not None and restarts is None:
        raise OptionError(f"start={start!r} goes with restarts; give restarts=1 for one such start")
    seed = choose_seed(seed)
    (data,) = as_arguments(x, model)
    if callable(check := getattr(model, "check", None)):
        check(data)
    display = make_display(progress, 0, epochs * (restarts or 1))
    try:
        with Interrupt() as interrupt, torch.no_grad():
            options = {} if start is None else {"start": start}
            ascent = _Ascent(
                model, data, epochs, tolerance, stepwise, seed, display, interrupt, options
            )
            outcome, message = ascent.best_of(restarts)
    finally:
        display.close()
    return Fit(
        model=model,
        guide=_no_guide if guide is None else guide,
        parameters={f"model.{name}": p.detach() for name, p in model.named_parameters()},
        history=tuple(outcome.history),
        steps=outcome.history[-1].step if outcome.history else 0,
        num_data=len(data),
        best_step=None,
        best_validation=None,
        restored_best=False,
        wall_time=time.perf_counter() - ascent.start,
        stop_reason=outcome.reason,
        stop_message=message,
        seed=seed,
        compiled=False,
        fallback_reason=None,
    )


def _check_options(
    model: nn.Module,
    epochs: int,
    tolerance: float,
    restarts: int | None,
    stepwise: Stepwise | None,
) -> None:
    positive_int("epochs", epochs)
    if not 0 <= tolerance < math.inf:
        raise OptionError(f"tolerance={tolerance!r}; give nats per datum, 0 or more")
    if not isinstance(model, SupportsEM):
        raise OptionError(
            f"{type(model).__name__} has no exact E- and M-steps, posterior(x) and "
            "maximize(x, posterior); use fit with a guide, with alternation=Alternation() if you "
            "like the two steps apart"
        )
    if restarts is not None:
        positive_int("restarts", restarts)
        if not hasattr(model, "initialize"):
            raise OptionError(
                f"restarts={restarts} needs initialize(x, generator=...), which "
                f"{type(model).__name__} lacks; leave restarts out"
            )
    if stepwise is not None and not isinstance(model, SupportsStepwise):
        raise OptionError(
            "stepwise EM needs statistics(x, posterior) and maximize_statistics(statistics), "
            f"which {type(model).__name__} lacks; leave stepwise out"
        )


def _no_guide(*args: Any, **kwargs: Any) -> None:
    raise OptionError("this fit was made without a guide; give one to em(model, x, guide=...)")


@dataclass(frozen=True)
class _Outcome:
    """How one start went."""

    history: list[EpochRecord]
    reason: StopReason
    bound: float


@dataclass(frozen=True)
class _Ascent:
    """EM on given data, from one start or several."""

    model: Any
    x: Tensor
    epochs: int
    tolerance: float
    stepwise: Stepwise | None
    seed: int
    display: Display
    interrupt: Interrupt
    options: dict[str, Any]
    start: float = field(default_factory=time.perf_counter)

    def best_of(self, restarts: int | None) -> tuple[_Outcome, str]:
        """Climb from each start and leave the model at the best place."""
        if restarts is None:
            return self._climb(0), ""
        best = _Outcome([], StopReason.EPOCHS, -math.inf)
        state = _copied(self.model)
        bounds = []
        for number in range(restarts):
            generator = torch.Generator().manual_seed(self._seed_of(number))
            self.model.initialize(self.x, generator=generator, **self.options)
            outcome = self._climb(number)
            bounds.append(outcome.bound)
            if outcome.bound > best.bound:
                best, state = outcome, _copied(self.model)
            if outcome.reason is StopReason.INTERRUPTED:
                best = replace(best, reason=StopReason.INTERRUPTED)
                break
        self.model.load_state_dict(state)
        words = f"best of {len(bounds)} starts, {min(bounds):.4f} to {max(bounds):.4f} nats"
        return best, words

    def _seed_of(self, number: int) -> int:
        return derive_seed(self.seed, Stream.STARTS, number)

    def _climb(self, number: int) -> _Outcome:
        history: list[EpochRecord] = []
        before = bound = -math.inf
        reason = StopReason.EPOCHS
        safe = _copied(self.model)
        for epoch, (bound, rate) in enumerate(self._epochs(number)):
            if not math.isfinite(bound):
                self.model.load_state_dict(safe)
                raise NonFiniteError(
                    f"the bound is {bound} after {epoch} epochs of EM; look for values of very "
                    "different sizes (standardise them), or use model.double()",
                    step=epoch,
                )
            safe = _copied(self.model)
            if epoch > 0:
                history.append(self._record(number, epoch, bound, rate))
                self._compare(before, bound, epoch)
                if abs(bound - before) < self.tolerance:
                    reason = StopReason.CONVERGED
                    break
            before = bound
            if self.interrupt.requested:
                reason = StopReason.INTERRUPTED
                break
        return _Outcome(history, reason, bound)

    def _record(self, number: int, epoch: int, bound: float, rate: float) -> EpochRecord:
        at = number * self.epochs + epoch
        self.display.show(Glance(at, epoch, self.epochs, at * len(self.x), bound, None))
        seconds = time.perf_counter() - self.start
        return EpochRecord(epoch, epoch, bound, None, rate, 1.0, seconds)

    def _epochs(self, number: int) -> Iterator[tuple[float, float]]:
        """The bound to begin with and after each epoch, with the weight of new statistics."""
        if self.stepwise is not None:
            seed = self._seed_of(number) + 1
            averaging = Averaging(
                self.model, self.x, self.stepwise, seed, self._bound, self.interrupt
            )
            yield averaging.begin(), math.nan
            for _ in range(self.epochs):
                yield averaging.epoch()
            return
        condense: Callable[[Tensor], Any] | None = getattr(self.model, "condense", None)
        data = self.x if condense is None else condense(self.x)
        posterior = self.model.posterior(data)
        yield self._bound(posterior), math.nan
        for _ in range(self.epochs):
            self.model.maximize(data, posterior)
            posterior = self.model.posterior(data)
            yield self._bound(posterior), math.nan

    def _bound(self, posterior: Any) -> float:
        """Nats per datum, with the log prior's share where there is a prior."""
        found = getattr(posterior, "bound", None)
        value = posterior.log_prob.double().mean() if found is None else found
        log_prior: Callable[[], Tensor] | None = getattr(self.model, "log_prior", None)
        return float(value if log_prior is None else value + log_prior() / len(self.x))

    def _compare(self, before: float, bound: float, epoch: int) -> None:
        """Warn of steps that are not exact."""
        if self.stepwise is not None:
            return
        digits = torch.finfo(next(self.model.parameters()).dtype).eps
        if before - bound > _ROUNDING * digits * max(1.0, abs(before)):
            warnings.warn(
                f"the bound fell from {before:.8g} to {bound:.8g} nats per datum in epoch {epoch} "
                "of EM, more than rounding explains: posterior and maximize do not fit together, "
                "or the data's values need more digits (model.double(), or standardise them)",
                stacklevel=5,
            )


def _copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}

"""One optimisation step of a pair: eager, or as one compiled graph."""

import logging
from collections.abc import Hashable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_flatten, tree_unflatten

from pyro_models.errors import OptionError
from pyro_models.infer import optimizer_state
from pyro_models.infer.compiled import (
    CANNOT_COMPILE,
    CompiledStep,
    MissingStateError,
    UntraceableError,
    reason,
    signature,
    traceable,
)
from pyro_models.infer.divergences import kl_per_datum
from pyro_models.infer.dry_run import dry_run, same_buffers
from pyro_models.infer.kl_inputs import KLInputs
from pyro_models.infer.objectives import Objective
from pyro_models.infer.objectives.base import OptimizerFactory
from pyro_models.infer.record import KLWeight, LogWeights
from pyro_models.infer.remedies import FreeBits
from pyro_models.infer.scope import Scope, buffers
from pyro_models.infer.updates import Update
from pyro_models.infer.weights import Program

logger = logging.getLogger(__name__)

# Each kind of batch costs seconds to compile; where all of them differ that never ends.
MOST_GRAPHS = 16


class Step:
    r"""A callable ``step(*args) -> loss`` that does one step of stochastic variational inference.

    The loss is minus the objective's bound in nats per datum: for the ELBO,
    :math:`-\frac1N \frac NB \sum_{i \in \text{batch}} \mathcal L_i`. It is returned as a 0-dim
    tensor on the device; nothing waits for the device.

    With ``compiled=True`` the whole step (sampling, log-densities, backward pass, optimiser) is
    traced once for each shape of batch and becomes one compiled graph; the very first step is
    eager, because the optimiser makes its state then. Learning rate and KL weight are inputs of
    the graph, so that a schedule never recompiles. Python values among the arguments, whether
    the model is in training mode and which parameters are frozen each have their graph;
    everything else that is no tensor, and what is random outside torch, is fixed in the graph.
    Where the step cannot be traced or compiled it stays eager, ``fallback_reason`` says why, and
    one line is logged. Eager and compiled steps follow the same trajectory up to rounding; their
    random draws differ, because the compiler has its own generator (seeded from torch's).

    Trained is what requires gradients at the first run; it may be frozen, and thawed, later.

    Parameters that a program makes with ``pyro.param`` live in this step, not in Pyro's global
    store: ``step.model`` and ``step.guide`` are the programs bound to them.

    Args:
        model: A Pyro program.
        guide: A Pyro program with the same arguments.
        objective: What to maximise, such as ``ELBO()``.
        optimizer: Makes a ``torch.optim`` optimiser for the parameters it is given, such as
            ``functools.partial(torch.optim.Adam, lr=1e-3)``.
        compiled: Whether to compile.
        free_bits: ``FreeBits(nats)`` for all latents, or by name of a latent; for the ELBO only.

    Raises:
        OptionError: If objective or optimiser are not of these kinds, free bits have no meaning for
            the objective, or, at the first run, there is nothing to train.

    Example:
        >>> import functools, pyro, pyro.distributions as dist
        >>> from pyro_models.infer.objectives import ELBO
        >>> def model(x):
        ...     loc = pyro.param("loc", torch.tensor(0.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        >>> adam = functools.partial(torch.optim.Adam, lr=0.1)
        >>> step = Step(model, lambda x: None, ELBO(), adam, compiled=False)
        >>> x = torch.full((5,), 2.0)
        >>> losses = [step(x).item() for _ in range(100)]
        >>> round(losses[0], 3), round(losses[-1], 3)  # log-density at 2 of N(0, 1), of N(2, 1)
        (2.919, 0.919)
        >>> "loc" in pyro.get_param_store()
        False
    """

    def __init__(
        self,
        model: Program,
        guide: Program,
        objective: Objective,
        optimizer: OptimizerFactory,
        *,
        compiled: bool = True,
        free_bits: FreeBits | Mapping[str, FreeBits] | None = None,
    ):
        if not isinstance(objective, Objective):
            raise OptionError(
                f"objective is {objective!r}; give one of pyro_models.infer's, such as ELBO()"
            )
        if isinstance(optimizer, Optimizer) or not callable(optimizer):
            raise OptionError(
                f"optimizer is a {type(optimizer).__name__}; give something that makes one from "
                "parameters, such as functools.partial(torch.optim.Adam, lr=1e-3)"
            )
        if free_bits:
            objective = objective.with_free_bits(free_bits)
        self.objective = objective.private()
        self.compiled = compiled
        self.fallback_reason: str | None = None
        self._programs = {"model": model, "guide": guide}
        self._scope = Scope()
        self._make_optimizer = optimizer
        self._updates: list[Update] = []
        self._parameters: dict[str, Tensor] = {}
        self.held: frozenset[str] = frozenset()
        """Names of parameters that the next steps leave as they are."""
        self._graphs: dict[Hashable, CompiledStep] = {}
        self._lr_factor = 1.0
        self._kl = KLInputs()
        self._steps = 0
        self._stored = 0
        self._stays_eager = False
        self._unprepared: set[Hashable] = set()

    @property
    def model(self) -> Program:
        """The model, bound to this step's parameters."""
        return self._scope.bind(self._programs["model"])

    @property
    def guide(self) -> Program:
        """The guide, bound to this step's parameters."""
        return self._scope.bind(self._programs["guide"])

    @property
    def lr_factor(self) -> float:
        """What every learning rate is multiplied by; a schedule sets it."""
        return self._lr_factor

    @lr_factor.setter
    def lr_factor(self, value: float) -> None:
        if value == self._lr_factor:
            return
        self._lr_factor = float(value)
        self._set_rates()

    @property
    def kl_weight(self) -> float | dict[str, float]:
        """Weight of the latents' terms in what is optimised, or by name of a latent; the reported
        loss has weight 1."""
        return self._kl.weight

    @kl_weight.setter
    def kl_weight(self, value: float | Mapping[str, float]) -> None:
        self._kl.set(value)

    def parameters(self) -> dict[str, Tensor]:
        """The tensors that are trained, by name; empty before the first run."""
        return dict(self._parameters)

    def initialize(self, *args: Any, **kwargs: Any) -> None:
        """Run the pair once, so that every parameter exists; torch's generators stay as they are.

        Raises:
            OptionError: If the pair has no parameter to train.
        """
        if self._updates:
            return
        with dry_run(*self._programs.values(), args, kwargs):
            trained = self._scope.collect(
                self._programs,
                lambda: self.objective.check_latents(self._weights(args, kwargs), self.kl_weight),
            )
        self._stored = len(self._scope.parameters)
        if not trained:
            raise OptionError(
                "neither model nor guide has a parameter to train; make one with pyro.param or "
                "torch.nn.Parameter, with requires_grad=True"
            )
        self._updates = [Update(self._make_optimizer, trained)]
        own = self._objective_parameters()
        if own and self.objective.optimizer is not None:
            self._updates.append(Update(self.objective.optimizer, own))
        self._parameters = {**trained, **own}
        device = next(iter(trained.values())).device
        self._kl.to(device)
        self._set_rates()

    def _objective_parameters(self) -> dict[str, Tensor]:
        state = self.objective.state
        named = () if state is None else state.named_parameters()
        return {f"objective.{name}": p for name, p in named if p.requires_grad}

    def _set_rates(self) -> None:
        for update in self._updates:
            update.set_rates(self._lr_factor)

    def __call__(self, *args: Any, **kwargs: Any) -> Float[Tensor, ""]:
        """Do one step on a batch and return the loss, in nats per datum, without waiting for it."""
        self.initialize(*args, **kwargs)
        if self._stays_eager or not self.compiled or not self._steps:
            loss = self._eager(args, kwargs, self._kl.weight)
        else:
            loss = self._compiled(args, kwargs)
        self._steps += 1
        return loss

    def evaluate(self, *args: Any, **kwargs: Any) -> Float[Tensor, ""]:
        """The bound on a batch, in nats per datum, without a step or gradients."""
        return self.evaluate_with_kl(*args, **kwargs)[0]

    def evaluate_with_kl(
        self, *args: Any, **kwargs: Any
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The bound on a batch as ``evaluate``, and each latent's KL by dimension, from one run.

        Both are in nats per datum; a latent that the guide fixes (a point mass) has no KL.
        """
        self.initialize(*args, **kwargs)
        with torch.no_grad(), self._scope():
            weights = self._weights(args, kwargs)
            bound = self.objective.estimate(weights).bound / weights.num_data
            return bound, {name: kl.terms for name, kl in kl_per_datum(weights).items()}

    def _weights(self, args: tuple, kwargs: dict) -> LogWeights:
        model, guide = self._programs["model"], self._programs["guide"]
        return self.objective.weights(model, guide, args, kwargs)

    def _eager(self, args: tuple, kwargs: dict, kl_weight: KLWeight) -> Tensor:
        """The step itself: also what is traced to a graph."""
        main, *others = self._made_updates()
        every = self._parameters
        parameters = [p for n, p in every.items() if p.requires_grad and n not in self.held]
        gradients = {name: parameter.grad for name, parameter in every.items()}
        for parameter in every.values():
            parameter.grad = None  # what an optimiser leaves alone
        losses = []

        def evaluate() -> Any:
            with torch.enable_grad(), self._scope():
                weights = self._weights(args, kwargs)
                bound, surrogate = self.objective.estimate(weights, kl_weight)
                loss = -surrogate / weights.num_data
                found = torch.autograd.grad(loss, parameters, allow_unused=True)
            self._check_parameters()
            for parameter, gradient in zip(parameters, found, strict=True):
                parameter.grad = optimizer_state.writable(gradient)
            losses.append(-bound / weights.num_data)
            return loss.detach()

        try:
            if main.needs_closure:
                main.optimizer.step(evaluate)
            else:
                evaluate()
                main.optimizer.step()
            for other in others:
                other.optimizer.step()
        finally:
            for name, gradient in gradients.items():
                every[name].grad = gradient
        return losses[0]

    def _made_updates(self) -> list[Update]:
        if not self._updates:
            raise OptionError("the step has no parameters yet; call it, or initialize, first")
        return self._updates

    def _modules(self) -> dict[str, Any]:
        """What may hold buffers: the programs, and what the objective remembers."""
        state = self.objective.state
        return self._programs if state is None else {**self._programs, "objective": state}

    def _check_parameters(self) -> None:
        late = list(self._scope.parameters)[self._stored :]
        if late:
            raise OptionError(
                f"{late} first appeared after the first step, too late to be trained; let every "
                "run of the programs make every parameter"
            )

    def _compiled(self, args: tuple, kwargs: dict) -> Tensor:
        try:
            key, batch = signature(args, kwargs)
        except UntraceableError as error:
            return self._fall_back(error, args, kwargs)
        key = (key, *self._modes())
        if key in self._graphs:
            return self._graphs[key](batch)
        if len(self._graphs) == MOST_GRAPHS:
            self._explain(f"{MOST_GRAPHS} kinds of batch have a graph, and no further ones get any")
            return self._eager(args, kwargs, self._kl.weight)
        try:
            graph = self._trace(args, kwargs, batch)
            loss = graph(batch)
        except MissingStateError as error:
            if key in self._unprepared:
                return self._fall_back(error, args, kwargs)
            self._unprepared.add(key)
            return self._eager(args, kwargs, self._kl.weight)
        except CANNOT_COMPILE as error:
            return self._fall_back(error, args, kwargs)
        self._graphs[key] = graph
        return loss

    def _modes(self) -> tuple[Hashable, ...]:
        """What else changes the graph: training modes, what is frozen or held, whose KL weighs."""
        training = (getattr(program, "training", None) for program in self._programs.values())
        return (
            *training,
            self.held,
            self._kl.names(),
            *(p.requires_grad for p in self._parameters.values()),
        )

    def _fall_back(self, error: Exception, args: tuple, kwargs: dict) -> Tensor:
        """Do the step eagerly, as all that follow; an error of the program itself is raised."""
        loss = self._eager(args, kwargs, self._kl.weight)
        self._stays_eager = True
        self._explain(reason(error))
        return loss

    def _explain(self, why: str) -> None:
        if self.fallback_reason is None:
            self.fallback_reason = why
            logger.warning("the step stays eager, it cannot be compiled: %s", why)

    def _trace(self, args: tuple, kwargs: dict, batch: list[Tensor]) -> CompiledStep:
        updates = self._made_updates()
        leaves, structure = tree_flatten((args, kwargs))
        for update in updates:
            update.count_in_double()
        own = buffers(self._modules())

        def run(tensors: Sequence[Tensor]) -> Tensor:
            given = iter(tensors)
            filled = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            args, kwargs = tree_unflatten(filled, structure)
            with ExitStack() as stack:
                for update in updates:
                    stack.enter_context(traceable(update.optimizer, update.rate_inputs))
                loss = self._eager(args, kwargs, self._kl.as_inputs())
            for name, buffer in buffers(self._modules()).items():
                if buffer is not own.get(name):
                    raise UntraceableError(f"buffer {name} is replaced and not changed in place")
            return loss

        rates = [rate for update in updates for rate in update.rate_inputs]
        state = [*self._state().values(), *rates, *self._kl.tensors()]
        with same_buffers(*self._programs.values()):
            return CompiledStep(run, batch, state)

    def _state(self) -> dict[str, Tensor]:
        """Every tensor that a step may change, by name; the tensors themselves."""
        state = {f"parameter/{name}": p for name, p in self._parameters.items()}
        state |= {f"buffer/{name}": b for name, b in buffers(self._modules()).items()}
        for update in self._updates:
            state |= update.tensors()
        return state

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of parameters, buffers, optimiser moments and the number of steps, by name.

        What an optimiser keeps besides tensors and numbers (LBFGS keeps lists) is not in it.
        """
        state = {name: value.detach().clone() for name, value in self._state().items()}
        for update in self._updates:
            state |= update.numbers()
        return state | {"steps": torch.tensor(self._steps)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Copy a ``state_dict`` back, in place; call ``initialize`` or a step before.

        Raises:
            OptionError: If the step has no parameters yet.
            CheckpointError: If names or shapes differ from this pair's.
        """
        updates = self._made_updates()
        is_other = optimizer_state.is_optimizer_entry
        own = {name: tensor for name, tensor in self._state().items() if not is_other(name)}
        optimizer_state.check_same(own, state)
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(state[name])
        same = [update.load(state) for update in updates]
        if not all(same):
            self._graphs.clear()  # they hold the tensors that the optimiser no longer has
        self._steps = int(state["steps"])

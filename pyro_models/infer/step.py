"""One optimisation step of a pair: eager, or as one compiled graph."""

import logging
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_flatten, tree_unflatten

from pyro_models.errors import CheckpointError, OptionError
from pyro_models.infer.compiled import CompiledStep, traceable
from pyro_models.infer.dry_run import preserved_rng
from pyro_models.infer.objectives import Objective
from pyro_models.infer.scope import Scope, buffers
from pyro_models.infer.weights import Program, log_weights

logger = logging.getLogger(__name__)

OptimizerFactory = Callable[[Iterable[Tensor]], Optimizer]

# What torch raises when a program cannot be traced or a machine cannot compile. The step has run
# eagerly before, so an error that comes only now says something of the tracing, not of the program.
_CANNOT_COMPILE = (
    RuntimeError,
    NotImplementedError,
    TypeError,
    ValueError,
    AssertionError,
    OSError,
)


class Step:
    r"""A callable ``step(*args) -> loss`` that does one step of stochastic variational inference.

    The loss is minus the objective's bound in nats per datum: for the ELBO,
    :math:`-\frac1N \frac NB \sum_{i \in \text{batch}} \mathcal L_i`. It is returned as a 0-dim
    tensor on the device; nothing waits for the device.

    With ``compiled=True`` the whole step (sampling, log-densities, backward pass, optimiser) is
    traced once for each shape of batch and becomes one compiled graph; the very first step is
    eager, because the optimiser makes its state then. Learning rate and KL weight are inputs of
    the graph, so that a schedule never recompiles. Python values other than tensors among the
    arguments, and everything random outside torch, are fixed in the graph. Where the step
    cannot be traced or compiled it stays eager, ``fallback_reason`` says why, and one line is
    logged. Eager and compiled steps follow the same trajectory up to rounding; their random
    draws differ, because the compiler has its own generator (seeded from torch's).

    Parameters that a program makes with ``pyro.param`` live in this step, not in Pyro's global
    store: ``step.model`` and ``step.guide`` are the programs bound to them.

    Args:
        model: A Pyro program.
        guide: A Pyro program with the same arguments.
        objective: What to maximise, such as ``ELBO()``.
        optimizer: Makes a ``torch.optim`` optimiser for the parameters it is given, such as
            ``functools.partial(torch.optim.Adam, lr=1e-3)``.
        compiled: Whether to compile.

    Raises:
        OptionError: If objective or optimiser are not of these kinds, or there is nothing to train.

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
        self.objective = objective
        self.compiled = compiled
        self.fallback_reason: str | None = None
        self._programs = {"model": model, "guide": guide}
        self._scope = Scope()
        self._make_optimizer = optimizer
        self._optimizer: Optimizer | None = None
        self._parameters: dict[str, Tensor] = {}
        self._graphs: dict[Hashable, CompiledStep] = {}
        self._rates: list[float] = []
        self._rate_inputs: list[Tensor] = []
        self._lr_factor = 1.0
        self._kl_weight = 1.0
        self._kl_input = torch.ones(())
        self._steps = 0

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
    def kl_weight(self) -> float:
        """Weight of the latents' terms in what is optimised; the reported loss has weight 1."""
        return self._kl_weight

    @kl_weight.setter
    def kl_weight(self, value: float) -> None:
        if value == self._kl_weight:
            return
        self._kl_weight = float(value)
        self._kl_input.fill_(self._kl_weight)

    def parameters(self) -> dict[str, Tensor]:
        """The tensors that are trained, by name; empty before the first run."""
        return dict(self._parameters)

    def initialize(self, *args: Any, **kwargs: Any) -> None:
        """Run the pair once, so that every parameter exists; torch's generators stay as they are.

        Raises:
            OptionError: If the pair has no parameter to train.
        """
        if self._optimizer is not None:
            return
        with preserved_rng(args, kwargs, *self._programs.values()), torch.no_grad():
            self._parameters = self._scope.collect(
                self._programs, lambda: self._weights(args, kwargs, num_particles=1)
            )
        if not self._parameters:
            raise OptionError(
                "neither model nor guide has a parameter to train; make one with pyro.param or "
                "torch.nn.Parameter, with requires_grad=True"
            )
        parameters = list(self._parameters.values())
        self._optimizer = self._make_optimizer(parameters)
        self._rates = [float(group["lr"]) for group in self._optimizer.param_groups]
        device = parameters[0].device
        self._rate_inputs = [
            torch.tensor(rate, dtype=torch.float64, device=device) for rate in self._rates
        ]
        self._kl_input = torch.tensor(self._kl_weight, device=device)
        if device.type == "cuda":
            for group in self._optimizer.param_groups:
                # Step counts on the device: no step ever waits for it, eager or compiled.
                group.update({"capturable": True} if "capturable" in group else {})
        self._set_rates()

    def _set_rates(self) -> None:
        if self._optimizer is None:
            return
        groups = self._optimizer.param_groups
        for group, rate, tensor in zip(groups, self._rates, self._rate_inputs, strict=True):
            group["lr"] = rate * self._lr_factor
            tensor.fill_(group["lr"])

    def __call__(self, *args: Any, **kwargs: Any) -> Float[Tensor, ""]:
        """Do one step on a batch and return the loss, in nats per datum, without waiting for it."""
        self.initialize(*args, **kwargs)
        if self.compiled and self.fallback_reason is None and self._steps:
            loss = self._compiled(args, kwargs)
        else:
            loss = self._eager(args, kwargs, self._kl_weight)
        self._steps += 1
        return loss

    def evaluate(self, *args: Any, **kwargs: Any) -> Float[Tensor, ""]:
        """The bound on a batch, in nats per datum, without a step or gradients."""
        self.initialize(*args, **kwargs)
        with torch.no_grad(), self._scope():
            weights = self._weights(args, kwargs, self.objective.num_particles)
            return self.objective.estimate(weights).bound / weights.num_data

    def _weights(self, args: tuple, kwargs: dict, num_particles: int) -> Any:
        model, guide = self._programs["model"], self._programs["guide"]
        return log_weights(model, guide, *args, num_particles=num_particles, **kwargs)

    def _eager(self, args: tuple, kwargs: dict, kl_weight: Tensor | float) -> Tensor:
        """The step itself: also what is traced to a graph."""
        optimizer = self._optimizer
        if optimizer is None:
            raise OptionError("the step has no parameters yet; call it, or initialize, first")
        parameters = list(self._parameters.values())
        with torch.enable_grad(), self._scope():
            weights = self._weights(args, kwargs, self.objective.num_particles)
            bound, surrogate = self.objective.estimate(weights, kl_weight)
            loss = -surrogate / weights.num_data
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        for parameter in parameters:
            parameter.grad = None
        return -bound / weights.num_data

    def _compiled(self, args: tuple, kwargs: dict) -> Tensor:
        key, batch = _signature(args, kwargs)
        if key in self._graphs:
            return self._graphs[key](batch)
        leaves, structure = tree_flatten((args, kwargs))
        try:
            graph = self._trace(leaves, structure, batch)
            loss = graph(batch)
        except _CANNOT_COMPILE as error:
            self.fallback_reason = _first_line(error)
            logger.warning("the step stays eager, it cannot be compiled: %s", self.fallback_reason)
            return self._eager(args, kwargs, self._kl_weight)
        self._graphs[key] = graph
        return loss

    def _trace(self, leaves: list, structure: Any, batch: list[Tensor]) -> CompiledStep:
        optimizer = self._optimizer
        if optimizer is None:
            raise OptionError("the step has no parameters yet; call it, or initialize, first")
        for values in optimizer.state.values():
            # Bias corrections 1 - beta**t need more digits than float32 has.
            if isinstance(values.get("step"), Tensor):
                values["step"] = values["step"].double()

        def run(tensors: Sequence[Tensor]) -> Tensor:
            given = iter(tensors)
            filled = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            args, kwargs = tree_unflatten(filled, structure)
            with traceable(optimizer, self._rate_inputs):
                return self._eager(args, kwargs, self._kl_input)

        state = [*self._state().values(), *self._rate_inputs, self._kl_input]
        return CompiledStep(run, batch, state)

    def _state(self) -> dict[str, Tensor]:
        """Every tensor that a step may change, by name; the tensors themselves."""
        state = {f"parameter/{name}": p for name, p in self._parameters.items()}
        state |= {f"buffer/{name}": b for name, b in buffers(self._programs).items()}
        if self._optimizer is not None:
            for name, parameter in self._parameters.items():
                for key, value in sorted(self._optimizer.state.get(parameter, {}).items()):
                    if isinstance(value, Tensor):
                        state[f"optimizer/{name}/{key}"] = value
        return state

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of parameters, buffers, optimiser moments and the number of steps, by name."""
        state = {name: value.detach().clone() for name, value in self._state().items()}
        return state | {"steps": torch.tensor(self._steps)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Copy a ``state_dict`` back, in place; call ``initialize`` or a step before.

        Raises:
            CheckpointError: If names or shapes differ from this pair's.
        """
        own = {n: t for n, t in self._state().items() if not n.startswith("optimizer/")}
        given = {n for n in state if n != "steps" and not n.startswith("optimizer/")}
        if given != set(own):
            raise CheckpointError(
                f"the state has other tensors than this pair: missing {sorted(set(own) - given)}, "
                f"unknown {sorted(given - set(own))}; load it into the pair it was saved from"
            )
        for name, tensor in own.items():
            if tensor.shape != state[name].shape:
                raise CheckpointError(
                    f"{name} has shape {tuple(state[name].shape)} in the state and "
                    f"{tuple(tensor.shape)} here; load it into the pair it was saved from"
                )
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(state[name])
        self._load_optimizer(state)
        self._steps = int(state["steps"])

    def _load_optimizer(self, state: dict[str, Tensor]) -> None:
        """Replace the optimiser's tensors; compiled graphs hold the old ones and go."""
        if self._optimizer is None:
            return
        self._graphs.clear()
        self._optimizer.state.clear()
        for name, parameter in self._parameters.items():
            prefix = f"optimizer/{name}/"
            for key, value in state.items():
                if key.startswith(prefix):
                    self._optimizer.state[parameter][key.removeprefix(prefix)] = value.clone()


def _signature(args: tuple, kwargs: dict) -> tuple[Hashable, list[Tensor]]:
    """What must be the same for a graph to serve again, and the tensors it is given."""
    leaves: list[Any] = [*args, *kwargs.values()]
    structure: Hashable = (len(args), *kwargs)
    if any(isinstance(leaf, list | tuple | dict) for leaf in leaves):
        # Flattening costs as much as a small graph: only nested arguments pay for it.
        leaves, structure = tree_flatten((args, kwargs))
    key = (structure, *(_describe(leaf) for leaf in leaves))
    return key, [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _describe(leaf: Any) -> Hashable:
    if isinstance(leaf, Tensor):
        return (leaf.shape, leaf.dtype, leaf.device)
    return leaf if isinstance(leaf, Hashable) else repr(leaf)


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__

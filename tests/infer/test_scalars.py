"""A graph cut in two beside the whole one: same losses and parameters, and where it is not cut."""

import functools
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_models.infer import compiled as compiled_module
from pyro_models.infer import scalars as scalars_module
from pyro_models.infer.scalars import Halves, split_scalars
from tests.infer.step_cases import make, no_guide

SIZE = 20_001
X = torch.linspace(-1.0, 1.0, SIZE, dtype=torch.float64)


def as_it_is(graph: GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
    """No compiler: the graph itself, which shows what was cut and not what a compiler does."""
    del inputs
    return graph.forward


def regression(x: Tensor) -> None:
    loc = pyro.param("loc", torch.zeros(SIZE, dtype=torch.float64))
    with pyro.plate("data", 1):
        pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x.unsqueeze(0))


@pytest.mark.parametrize(
    ("optimizer", "tolerance"),
    [
        (functools.partial(torch.optim.Adam, lr=0.05), 1e-11),
        (functools.partial(torch.optim.Adam, lr=0.05, amsgrad=True), 1e-11),
        (functools.partial(torch.optim.AdamW, lr=0.05, weight_decay=0.1), 1e-11),
        # It keeps a product of ten numbers in float32, whose rounding is 6e-8 each.
        (functools.partial(torch.optim.NAdam, lr=0.05), 6e-7),
    ],
    ids=["Adam", "AMSGrad", "AdamW", "NAdam"],
)
def test_cut_equals_eager(
    optimizer: Any, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten steps whose numbers change at each: a stale or twice counted one is far off."""
    cuts: list[Halves | None] = []

    def watched(*args: Any) -> Halves | None:
        cuts.append(split_scalars(*args))
        return cuts[-1]

    monkeypatch.setattr(compiled_module, "_compile_on_cpu", as_it_is)
    monkeypatch.setattr(compiled_module, "split_scalars", watched)
    eager, compiled = (make(regression, no_guide, optimizer, compiled=c) for c in (False, True))
    for t in range(10):
        for step in (eager, compiled):
            step.lr_factor = 1.0 / (1 + t)
        torch.testing.assert_close(compiled(X), eager(X), rtol=tolerance, atol=0)
        one, other = compiled.parameters()["loc"], eager.parameters()["loc"]
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance / 100)
    assert compiled.fallback_reason is None
    assert len(cuts) == 1
    assert cuts[0] is not None
    counts = [v for n, v in compiled.state_dict().items() if n.endswith("/step")]
    assert [count.item() for count in counts] == [10.0]


def test_compiled_by_the_compiler_too(monkeypatch: pytest.MonkeyPatch) -> None:
    cuts: list[Halves | None] = []

    def watched(*args: Any) -> Halves | None:
        cuts.append(split_scalars(*args))
        return cuts[-1]

    monkeypatch.setattr(compiled_module, "split_scalars", watched)
    adam = functools.partial(torch.optim.Adam, lr=0.05)
    eager, compiled = (make(regression, no_guide, adam, compiled=c) for c in (False, True))
    for _ in range(6):
        torch.testing.assert_close(compiled(X), eager(X), rtol=1e-12, atol=0)
    torch.testing.assert_close(
        compiled.parameters()["loc"], eager.parameters()["loc"], rtol=1e-11, atol=1e-13
    )
    assert compiled.fallback_reason is None
    assert [cut is None for cut in cuts] == [False]


# --- graphs by hand ------------------------------------------------------------------------------


def cut(step: Callable[..., Tensor], *inputs: Tensor) -> Halves | None:
    graph = make_fx(step)(*(i.clone() for i in inputs))
    return split_scalars(graph, list(inputs), as_it_is)


def corrected(count: Tensor, values: Tensor) -> Tensor:
    """What Adam does: count, then take a power of the count for all values."""
    count.add_(1)
    values.mul_(1 - 0.9**count)
    return values.sum()


def reads_before(count: Tensor, values: Tensor) -> Tensor:
    values.add_(count)
    count.add_(1)
    values.mul_(1 - 0.9**count)
    return values.sum()


def changes_from_values(count: Tensor, values: Tensor) -> Tensor:
    power = 0.9**count
    count.add_(values.sum())
    return (values * power).sum()


def reads_between(count: Tensor, values: Tensor) -> Tensor:
    count.add_(1)
    values.mul_(1 - 0.9**count)
    count.add_(1)
    return values.sum()


def without_powers(count: Tensor, values: Tensor) -> Tensor:
    count.add_(1)
    values.mul_(1.0 / count)
    return values.sum()


def numbers() -> tuple[Tensor, Tensor]:
    return torch.tensor(2.0, dtype=torch.float64), X.clone()


def test_a_graph_by_hand_is_cut_and_does_the_same() -> None:
    halves = cut(corrected, *numbers())
    assert halves is not None
    assert halves.scalars_take == (0,)
    ours, theirs = numbers(), numbers()
    for _ in range(3):
        (result,) = halves(*ours)
        torch.testing.assert_close(result, corrected(*theirs), rtol=1e-14, atol=0)
    assert ours[0] == theirs[0] == 5.0
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-14, atol=0)


def test_a_number_read_after_its_last_change_may_be_cut() -> None:
    halves = cut(reads_between, *numbers())
    ours, theirs = numbers(), numbers()
    # The power is a value of its own, taken between the changes, and comes first as they do.
    assert halves is not None
    (result,) = halves(*ours)
    torch.testing.assert_close(result, reads_between(*theirs), rtol=1e-14, atol=0)
    assert ours[0] == theirs[0] == 4.0


@pytest.mark.parametrize("step", [reads_before, changes_from_values], ids=["read", "changed"])
def test_what_would_be_another_result_is_not_cut(step: Callable[..., Tensor]) -> None:
    assert cut(step, *numbers()) is None


def test_what_is_not_worth_it_is_not_cut() -> None:
    assert cut(without_powers, *numbers()) is None
    count, values = numbers()
    assert cut(corrected, count, values[: scalars_module._WORTH_A_CALL - 2]) is None
    assert cut(corrected, count, values[: scalars_module._WORTH_A_CALL - 1]) is not None


def test_random_numbers_are_drawn_where_they_were() -> None:
    """A draw in the first part would come before those of the second, and change them all."""

    def step(count: Tensor, values: Tensor) -> Tensor:
        noise = torch.randn_like(values)
        count.add_(1)
        shift = torch.rand_like(count)
        values.mul_(1 - 0.9**count).add_(noise * shift)
        return values.sum()

    halves = cut(step, *numbers())
    ours, theirs = numbers(), numbers()
    assert halves is not None
    torch.manual_seed(1)
    (result,) = halves(*ours)
    torch.manual_seed(1)
    torch.testing.assert_close(result, step(*theirs), rtol=1e-13, atol=1e-13)


def test_sgd_is_left_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    cuts: list[Halves | None] = []

    def watched(*args: Any) -> Halves | None:
        cuts.append(split_scalars(*args))
        return cuts[-1]

    monkeypatch.setattr(compiled_module, "_compile_on_cpu", as_it_is)
    monkeypatch.setattr(compiled_module, "split_scalars", watched)
    momentum = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    eager, compiled = (make(regression, no_guide, momentum, compiled=c) for c in (False, True))
    for _ in range(4):
        torch.testing.assert_close(compiled(X), eager(X), rtol=1e-12, atol=0)
    assert cuts == [None]

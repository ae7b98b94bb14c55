"""Schedules are pure functions of progress; each is held against its formula."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyro_models.errors import OptionError
from pyro_models.infer.schedules import (
    Beta,
    Burda,
    Constant,
    Cosine,
    CyclicalWarmup,
    Exponential,
    InverseEpoch,
    KLSchedule,
    LinearWarmup,
    Progress,
    Schedule,
    Warmup,
)


def at(step: int = 0, epoch: int = 0, epochs: int = 10, steps: int | None = 100) -> Progress:
    return Progress(step, epoch, epochs, steps)


def test_inverse_epoch_is_that_of_the_notes() -> None:
    assert [InverseEpoch().factor(at(epoch=e)) for e in range(4)] == [1, 1 / 2, 1 / 3, 1 / 4]


def test_exponential() -> None:
    assert [Exponential(0.9).factor(at(epoch=e)) for e in range(3)] == [1, 0.9, 0.9**2]


def test_cosine_goes_from_one_to_the_floor_and_is_halfway_in_the_middle() -> None:
    cosine = Cosine(floor=0.1)
    assert cosine.factor(at(0)) == 1.0
    assert cosine.factor(at(50)) == pytest.approx(0.55)
    assert cosine.factor(at(100)) == pytest.approx(0.1)
    assert cosine.factor(at(130)) == pytest.approx(0.1)


def test_cosine_counts_epochs_where_steps_are_unknown() -> None:
    assert Cosine().factor(at(step=7, epoch=5, steps=None)) == pytest.approx(0.5)


def test_burda_has_stages_of_powers_of_three() -> None:
    factors = [Burda().factor(at(epoch=e, epochs=3280)) for e in range(3280)]
    for stage in range(8):
        expected = 10 ** (-stage / 7)
        assert sum(math.isclose(f, expected) for f in factors) == 3**stage
    assert factors == sorted(factors, reverse=True)
    assert Burda().factor(at(epoch=10**6)) == pytest.approx(0.1)


def test_warmup_rises_to_what_follows() -> None:
    warmup = Warmup(4, then=InverseEpoch())
    factors = [warmup.factor(at(step=s, epoch=1)) for s in range(6)]
    assert factors == [0.125, 0.25, 0.375, 0.5, 0.5, 0.5]


def test_linear_warmup_of_the_kl_weight() -> None:
    warmup = LinearWarmup(10, start=0.5)
    assert [warmup.weight(at(step=s)) for s in (0, 5, 10, 99)] == [0.5, 0.75, 1.0, 1.0]
    to_beta = LinearWarmup(10, start=1.0, end=5.0)
    assert [to_beta.weight(at(step=s)) for s in (0, 5, 10, 99)] == [1.0, 3.0, 5.0, 5.0]
    down = LinearWarmup(4, start=2.0, end=1.0)
    assert [down.weight(at(step=s)) for s in (0, 1, 4, 5)] == [2.0, 1.75, 1.0, 1.0]


def test_beta_is_constant() -> None:
    assert [Beta(0.3).weight(at(step=s)) for s in (0, 5, 99)] == [0.3, 0.3, 0.3]


def test_cyclical_warmup() -> None:
    warmup = CyclicalWarmup(period=10, cycles=2, rise=0.5)
    weights = [warmup.weight(at(step=s)) for s in range(22)]
    cycle = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert weights == pytest.approx([*cycle, *cycle, 1.0, 1.0])
    high = CyclicalWarmup(period=10, cycles=2, rise=0.5, top=4.0)
    assert [high.weight(at(step=s)) for s in range(22)] == pytest.approx([4 * w for w in weights])


@given(
    step=st.integers(0, 10_000),
    epoch=st.integers(0, 5000),
    schedule=st.sampled_from(
        [
            Constant(),
            InverseEpoch(),
            Exponential(0.99),
            Cosine(0.01),
            Burda(),
            Warmup(50, then=Burda()),
        ]
    ),
)
def test_factors_lie_between_zero_and_one(step: int, epoch: int, schedule: Schedule) -> None:
    moment = at(step, epoch, epochs=5000, steps=10_000)
    assert 0.0 <= schedule.factor(moment) <= 1.0
    assert schedule.factor(moment) == schedule.factor(moment)


@given(
    step=st.integers(0, 10_000),
    warmup=st.sampled_from([LinearWarmup(700), CyclicalWarmup(130, cycles=5, rise=0.3)]),
)
def test_weights_lie_between_zero_and_one(step: int, warmup: KLSchedule) -> None:
    assert 0.0 <= warmup.weight(at(step)) <= 1.0


@pytest.mark.parametrize(
    "make",
    [
        lambda: Exponential(0.0),
        lambda: Exponential(1.1),
        lambda: Cosine(-0.1),
        lambda: Warmup(0),
        lambda: LinearWarmup(0),
        lambda: LinearWarmup(5, start=-2.0),
        lambda: CyclicalWarmup(0),
        lambda: CyclicalWarmup(10, cycles=0),
        lambda: CyclicalWarmup(10, rise=0.0),
        lambda: CyclicalWarmup(10, top=-1.0),
        lambda: LinearWarmup(5, end=math.inf),
        lambda: Beta(-0.1),
        lambda: Beta(math.nan),
    ],
)
def test_what_cannot_work_raises_at_construction(make: object) -> None:
    with pytest.raises(OptionError, match="give"):
        make()  # type: ignore[operator]

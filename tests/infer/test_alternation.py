"""Variational EM: whose turn it is, and where it leads."""

from functools import partial
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

from pyro_models.errors import OptionError
from pyro_models.infer import Alternation, Checkpoint, StopFit, fit
from pyro_models.infer.run import EpochEnd

SGD = partial(torch.optim.SGD, lr=0.1)


class Model(nn.Module):
    """z ~ N(m, 1), x | z ~ N(z, 1): marginally N(m, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(0.0))

    def forward(self, x: Tensor) -> None:
        pyro.module("model", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.mean, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x: Tensor) -> None:
    """The exact posterior is N((x + m) / 2, 1/2)."""
    shift = pyro.param("shift", torch.tensor(2.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal((x + shift) / 2, 0.5**0.5))


X = torch.tensor([1.0, 3.0])


@pytest.mark.parametrize("compiled", [False, True])
def test_each_takes_its_turns_alone(compiled: bool) -> None:
    seen: list[tuple[float, float]] = []

    def watch(end: EpochEnd) -> None:
        parameters = end.step.parameters()
        seen.append((parameters["shift"].item(), parameters["model.mean"].item()))

    result = fit(
        Model(),
        guide,
        X,
        optimizer=SGD,
        epochs=6,
        alternation=Alternation(e_steps=2, m_steps=1),
        compiled=compiled,
        callbacks=[watch],
        seed=0,
        progress=False,
    )
    assert result.fallback_reason is None
    shifts, means = ([2.0] + [s for s, _ in seen], [0.0] + [m for _, m in seen])
    moved = [(b != a, d != c) for a, b, c, d in zip(shifts, shifts[1:], means, means[1:])]  # noqa: B905
    assert moved == [(True, False), (True, False), (False, True)] * 2


def test_it_leads_to_the_maximum_of_the_likelihood() -> None:
    model = Model()
    result = fit(
        model,
        guide,
        X,
        optimizer=SGD,
        epochs=200,
        alternation=Alternation(e_steps=3, m_steps=2),
        seed=0,
        progress=False,
    )
    # The mean of the data, and the posterior that goes with it; draws leave noise of about 0.1.
    assert model.mean.item() == pytest.approx(2.0, abs=0.5)
    assert result.parameters["shift"].item() == pytest.approx(model.mean.item(), abs=0.5)


def test_an_autoguide_takes_turns_too() -> None:
    model = Model()
    with pyro.get_param_store().scope():
        auto = AutoNormal(model)
        result = fit(
            model, auto, X, optimizer=SGD, epochs=100, batch_size=None,
            alternation=Alternation(), seed=0, progress=False,
        )  # fmt: skip
    assert result.elbo is not None
    assert result.elbo > -2.5


def test_a_resumed_fit_takes_up_its_turn(tmp_path: Path) -> None:
    def run(path: Path, epochs: int, stop_at: int = 99, resume: bool = False) -> dict[str, Tensor]:
        def watch(end: EpochEnd) -> None:
            if end.record.epoch == stop_at:
                raise StopFit

        result = fit(
            Model(), guide, X, optimizer=SGD, epochs=epochs, alternation=Alternation(2, 3),
            checkpoint=Checkpoint(path), resume=resume, callbacks=[watch], seed=0, progress=False,
        )  # fmt: skip
        return result.parameters

    whole = run(tmp_path / "a", 9)
    run(tmp_path / "b", 9, stop_at=4)
    halves = run(tmp_path / "b", 9, resume=True)
    assert all(torch.equal(whole[name], halves[name]) for name in whole)


@pytest.mark.parametrize("turns", [(0, 1), (1, 0)])
def test_turns_are_whole_numbers(turns: tuple) -> None:
    with pytest.raises(OptionError, match="steps"):
        Alternation(*turns)


def test_both_sides_need_parameters() -> None:
    def fixed(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    with pytest.raises(OptionError, match="the guide has none of its own"):
        fit(Model(), fixed, X, optimizer=SGD, alternation=Alternation(), progress=False)

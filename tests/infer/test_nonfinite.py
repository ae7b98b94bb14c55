"""NaN and infinity stop a fit with the step and the site, and leave the state before that step."""

import functools
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_models.errors import NonFiniteError
from pyro_models.infer import checkpoint as files
from pyro_models.infer import nonfinite
from pyro_models.infer.batches import TensorBatches
from pyro_models.infer.checkpoint import Checkpoint
from pyro_models.infer.progress import LossMeter
from pyro_models.infer.run import EpochEnd
from tests.infer.fit_cases import adam, local_guide, local_model, mean_model, no_guide, normal_data
from tests.infer.fit_cases import fit as quiet_fit

fit = functools.partial(quiet_fit, batch_size=5)

POISON = 7
X = normal_data(40)


def poisoned(value: float) -> Tensor:
    return torch.where(torch.arange(40) == POISON, torch.tensor(value), X)


def step_with(index: int, epoch: int = 0) -> int:
    """Number, from 1, of the step whose batch holds a datum."""
    batches = TensorBatches((torch.arange(40),), 5, torch.device("cpu"), seed=0)
    found = [index in x.tolist() for (x,) in batches.epoch(epoch)]
    return epoch * 8 + found.index(True) + 1


def test_an_infinite_density_names_step_and_site(tmp_path: Path) -> None:
    step = step_with(POISON)
    assert step > 1
    with pytest.raises(
        NonFiniteError, match=f"step {step}: at site 'z', 'x'.*learning rate"
    ) as caught:
        fit(
            local_model,
            local_guide,
            poisoned(1e30),
            epochs=3,
            checkpoint=Checkpoint(tmp_path, every_steps=1, keep=99),
        )
    assert (caught.value.step, caught.value.sites) == (step, ("z", "x"))
    assert files.read(tmp_path).record["position"]["step"] == step - 1


def test_parameters_are_left_as_they_were_before_the_step() -> None:
    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loc = torch.nn.Parameter(torch.tensor(0.0))

        def forward(self, x: Tensor) -> None:
            loc = pyro.param("loc", self.loc)
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    step = step_with(POISON)
    broken, whole = Module(), Module()
    with pytest.raises(NonFiniteError):
        fit(broken, no_guide, poisoned(1e30), epochs=2)
    batches = TensorBatches((X,), 5, torch.device("cpu"), seed=0)
    optimizer = adam(whole.parameters())
    for (x,) in list(batches.epoch(0))[: step - 1]:
        optimizer.zero_grad()
        (-dist.Normal(whole.loc, 1.0).log_prob(x).mean()).backward()
        optimizer.step()
    assert broken.loc.item() == pytest.approx(whole.loc.item(), rel=1e-5)
    assert broken.loc.item() != 0.0


def test_nan_that_distributions_refuse_is_explained_too() -> None:
    # Validation raises a ValueError in the middle of the step; the site is found all the same.
    def guide(x: Tensor, num_data: int | None = None) -> None:
        local_guide(torch.where(x > 1e6, torch.log(-x), x), num_data)

    step = step_with(POISON)
    with pytest.raises(NonFiniteError, match=f"step {step}: at site 'z', 'x'") as caught:
        fit(local_model, guide, poisoned(1e7), epochs=1)
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_gradient_is_named() -> None:
    def model(x: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(1.0))
        shift = pyro.param("shift", torch.tensor(1.0))
        loc = (slope * x.min()).sqrt() + shift  # infinite slope at zero
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    data = torch.where(torch.arange(40) == POISON, torch.tensor(0.0), X.abs() + 0.1)
    with pytest.raises(NonFiniteError, match="the gradient of 'slope'") as caught:
        fit(model, no_guide, data, epochs=1)
    assert (caught.value.step, caught.value.sites) == (step_with(POISON), ("slope",))


def test_an_update_that_overflows_is_named() -> None:
    wild = functools.partial(torch.optim.SGD, lr=1e38)
    with pytest.raises(NonFiniteError, match="the updated 'loc'") as caught:
        fit(mean_model, no_guide, X + 100.0, epochs=1, optimizer=wild)
    assert caught.value.step == 1


@pytest.mark.parametrize("keep_every", [1, 3, 1000])
def test_what_is_noticed_only_at_the_end_of_an_epoch_is_traced_back(
    monkeypatch: pytest.MonkeyPatch, keep_every: int
) -> None:
    # As on a device, where no step waits for its loss.
    add = LossMeter.add

    def add_blindly(self: LossMeter, loss: Tensor, data: int) -> bool:
        add(self, loss, data)
        return True

    monkeypatch.setattr(LossMeter, "add", add_blindly)
    monkeypatch.setattr(nonfinite, "KEEP_EVERY", keep_every)
    with pytest.raises(NonFiniteError) as caught:
        fit(local_model, local_guide, poisoned(1e30), epochs=3)
    assert (caught.value.step, caught.value.sites) == (step_with(POISON), ("z", "x"))


@pytest.mark.filterwarnings("ignore")  # what the compiler says is not ours
def test_a_compiled_fit_is_explained() -> None:
    with pytest.raises(NonFiniteError) as caught:
        fit(local_model, local_guide, poisoned(1e30), epochs=3, compiled=True)
    assert (caught.value.step, caught.value.sites) == (step_with(POISON), ("z", "x"))


def test_what_a_callback_breaks_is_found_at_once() -> None:
    def poison(event: EpochEnd) -> None:
        with torch.no_grad():
            event.step.parameters()["loc"].fill_(torch.inf)

    with pytest.raises(NonFiniteError, match="between steps 1 and"):
        fit(mean_model, no_guide, X, epochs=3, callbacks=[poison])


def test_an_error_of_the_users_own_is_left_alone() -> None:
    calls = []

    def model(x: Tensor) -> None:
        calls.append(1)
        if len(calls) > 5:
            raise ValueError("mine")
        mean_model(x)

    with pytest.raises(ValueError, match=r"^mine") as caught:
        fit(model, no_guide, X, epochs=3)
    assert type(caught.value) is ValueError


def test_the_last_step_is_checked_too() -> None:
    # The update of the very last step overflows; no later loss would tell.
    wild = functools.partial(torch.optim.SGD, lr=1e38)
    with pytest.raises(NonFiniteError, match="the updated 'loc'"):
        fit(mean_model, no_guide, X + 100.0, epochs=1, batch_size=None, optimizer=wild)

"""The amortised component: its network, its program, and that it learns the exact posterior."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, TraceEnum_ELBO, config_enumerate
from pyro.optim import Adam  # type: ignore[attr-defined]
from torch import nn

from guides import AmortizedCategorical
from pyro_models.errors import DataError, OptionError
from pyro_models.infer import VIMCO, Step
from pyro_models.mixture import GaussianMixture
from pyro_models.networks import Standardize
from tests.unchecked import unchecked


def mixture() -> GaussianMixture:
    model = GaussianMixture(3, 2)
    model.set(
        weights=torch.tensor([0.5, 0.3, 0.2]),
        means=torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 3.0]]),
    )
    return model


def test_its_logits_are_the_networks() -> None:
    guide = AmortizedCategorical(2, 3, hidden=(5,), activation=nn.ReLU)
    x = torch.randn(4, 2)
    weights = dict(guide.encoder.named_parameters())
    hidden = (x @ weights["body.0.weight"].T + weights["body.0.bias"]).clamp_min(0)
    logits = hidden @ weights["output.weight"].T + weights["output.bias"]
    torch.testing.assert_close(guide.posterior(x).probs, logits.softmax(-1))


def test_the_program_draws_in_the_plate() -> None:
    guide = AmortizedCategorical(4, 3)
    trace: Any = poutine.trace(guide).get_trace(torch.randn(5, 1, 2, 2), num_data=50)
    site = trace.nodes["component"]
    assert site["value"].shape == (5,)
    (plate,) = site["cond_indep_stack"]
    assert (plate.name, plate.size, plate.full_size) == ("data", 5, 50)
    assert len([n for n in trace.nodes.values() if n["type"] == "param"]) == 4


def train_stock(model: GaussianMixture, guide: AmortizedCategorical, x: torch.Tensor) -> None:
    marked = config_enumerate(guide)
    svi = SVI(model, marked, Adam({"lr": 0.05}), TraceEnum_ELBO(max_plate_nesting=1))
    for _ in range(150):
        svi.step(x)


def train_vimco(model: GaussianMixture, guide: AmortizedCategorical, x: torch.Tensor) -> None:
    adam = partial(torch.optim.Adam, lr=0.05)
    step = Step(model, guide, VIMCO(5), adam, compiled=False)
    for _ in range(150):
        step(x)


@pytest.mark.parametrize("train", [train_stock, train_vimco])
def test_it_learns_the_posterior(train: Callable[..., None]) -> None:
    model = mixture().requires_grad_(False)
    with torch.no_grad():
        x = model(num_data=400)
    guide = AmortizedCategorical(2, 3, hidden=(16,), preprocess=Standardize(x))
    exact = model.log_joint(x).log_softmax(-1)

    def divergence() -> float:
        log_q = guide.posterior(x).logits
        return (log_q.exp() * (log_q - exact)).sum(-1).mean().item()

    before = divergence()
    train(model, guide, x)
    assert divergence() < 0.05 < before


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: AmortizedCategorical(0, 2), "data_dim=0"),
        (lambda: AmortizedCategorical(3, 0), "num_components=0"),
        (lambda: AmortizedCategorical(3, 2, hidden=(4,), encoder=nn.Linear(3, 2)), "not both"),
        (
            lambda: AmortizedCategorical(3, 2, encoder=nn.Linear(3, 5))(torch.zeros(2, 3)),
            r"\(2, 2\) is expected",
        ),
    ],
)
def test_options_that_cannot_work_are_refused(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(OptionError, match=words), unchecked():
        make()


def test_data_are_needed() -> None:
    with pytest.raises(DataError, match="give x"):
        AmortizedCategorical(3, 2)()
    with pytest.raises(DataError, match=r"\(batch, 3\)"):
        AmortizedCategorical(3, 2)(torch.zeros(2, 4))

"""Regression against the normal equations and the formula of its likelihood."""

import functools
import math
from typing import Any

import pytest
import torch
from pyro import poutine
from torch import Tensor, nn

from guides import Empty
from pyro_models.errors import DataError, OptionError, SupportError
from pyro_models.infer import ELBO, fit
from pyro_models.likelihoods import Bernoulli, LearnedScale, Normal
from pyro_models.regression import SupervisedRegression
from tests.unchecked import unchecked


def data() -> tuple[Tensor, Tensor]:
    inputs = torch.randn(200, 3) * torch.tensor([1.0, 2.0, 0.5])
    return inputs, inputs @ torch.randn(3, 2) + 3 + 0.5 * torch.randn(200, 2)


def test_maximum_likelihood_is_least_squares() -> None:
    inputs, x = data()
    design = torch.cat([inputs, torch.ones(200, 1)], 1)
    wanted = design @ torch.linalg.lstsq(design, x).solution
    model = SupervisedRegression(3, 2)
    model.initialize(x)
    # By the engine on minibatches, as far as it goes in a few epochs ...
    adam = functools.partial(torch.optim.Adam, lr=0.1)
    options: Any = {"compiled": False, "seed": 0, "progress": False, "batch_size": 50}
    fit(model, Empty(), (inputs, x), optimizer=adam, epochs=25, **options)
    best = -0.5 * ((x - wanted).square().sum(1) + 2 * math.log(2 * math.pi)).mean()
    assert best - 0.1 < model.log_prob(inputs, x).mean() < best + 1e-5
    # ... and to the end without noise.
    newton = torch.optim.LBFGS(model.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        newton.zero_grad()
        loss = ELBO().differentiable_loss(model, Empty(), inputs, x) / 200
        loss.backward()
        return loss

    newton.step(closure)
    assert torch.allclose(model.predict(inputs).mean, wanted, atol=5e-3)


def test_the_likelihood_is_its_formula() -> None:
    inputs, x = data()
    model = SupervisedRegression(3, 2, hidden=(4,))
    weights = dict(model.network.named_parameters())
    hidden = torch.sigmoid(inputs @ weights["body.0.weight"].T + weights["body.0.bias"])
    mean = hidden @ weights["output.weight"].T + weights["output.bias"]
    wanted = -0.5 * ((x - mean).square().sum(1) + 2 * math.log(2 * math.pi))
    assert torch.allclose(model.log_prob(inputs, x), wanted, rtol=1e-5)
    trace: Any = poutine.trace(model).get_trace(inputs, x, num_data=2000)
    assert torch.allclose(trace.log_prob_sum(), 10 * wanted.sum(), rtol=1e-5)
    assert trace.nodes["x"]["is_observed"]
    assert trace.nodes["x"]["cond_indep_stack"][0].full_size == 2000


def test_without_outputs_it_simulates() -> None:
    model = SupervisedRegression(3, 1)
    inputs = torch.randn(1, 3).expand(20_000, 3)
    with torch.no_grad():
        x, mean = model(inputs), model.predict(inputs[:1]).mean
    assert abs(x.mean() - mean) < 4 / len(x) ** 0.5
    assert abs(x.var() - 1) < 4 * (2 / len(x)) ** 0.5


def test_another_likelihood_makes_a_generalised_linear_model() -> None:
    model = SupervisedRegression(3, 1, likelihood=Bernoulli())
    inputs, x = torch.randn(5, 3), torch.tensor([[0.0], [1.0], [1.0], [0.0], [1.0]])
    logits = model.network(inputs)
    wanted = -nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none")[:, 0]
    assert torch.allclose(model.log_prob(inputs, x), wanted)
    with pytest.raises(SupportError):
        model.check(inputs, x * 0.5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SupervisedRegression(0, 1), "in_dim=0"),
        (lambda: SupervisedRegression(1, 0), "out_dim=0"),
        (lambda: SupervisedRegression(1, 1, hidden=(4,), network=nn.Linear(1, 1)), "not both"),
        (lambda: SupervisedRegression(1, 1, likelihood="normal"), "no likelihood"),  # type: ignore[arg-type]
        (
            lambda: SupervisedRegression(1, 1, likelihood=Normal(LearnedScale(data_dim=2))),
            "out_dim=1",
        ),
        (
            lambda: SupervisedRegression(1, 1, network=nn.Linear(1, 2))(torch.zeros(1, 1)),
            "output layer",
        ),
        (
            lambda: SupervisedRegression(1, 1, network=nn.Linear(1, 1)).initialize(
                torch.zeros(2, 1)
            ),
            "no output_bias",
        ),
    ],
)
def test_options_that_cannot_work_are_refused(make: Any, words: str) -> None:
    with pytest.raises(OptionError, match=words), unchecked():
        make()


@pytest.mark.parametrize(
    ("inputs", "x", "words"),
    [
        (torch.zeros(2, 4), torch.zeros(2, 2), r"\(batch, 3\)"),
        (torch.zeros(2, 3), torch.zeros(2, 1), r"\(batch, 2\)"),
        (torch.zeros(2, 3), torch.zeros(3, 2), "2 inputs and 3 outputs"),
        (torch.full((2, 3), math.nan), torch.zeros(2, 2), "inputs hold 6"),
        (torch.zeros(2, 3), torch.full((2, 2), math.inf), "finite"),
    ],
)
def test_data_it_cannot_take_are_refused(inputs: Tensor, x: Tensor, words: str) -> None:
    with pytest.raises(DataError, match=words), unchecked():
        SupervisedRegression(3, 2).check(inputs, x)

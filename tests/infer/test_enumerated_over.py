"""Latents that are summed out although the guide samples them."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_models.errors import OptionError, SiteMismatchError
from pyro_models.infer import ELBO, IWAE, Enumerated, Objective, Step
from pyro_models.programs import announce
from tests.unchecked import unchecked

X = torch.tensor([0.0, 2.0, -1.0])
WEIGHTS = torch.tensor([0.4, 0.6])


class Mixture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.means = nn.Parameter(torch.tensor([-1.0, 2.0]))

    def joint(self, x: Tensor) -> Tensor:
        return WEIGHTS.log() + dist.Normal(self.means, 1.0).log_prob(x[:, None])

    def forward(self, x: Tensor) -> None:
        announce(self, "model")
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(WEIGHTS))
            pyro.sample("x", dist.Normal(self.means[k], 1.0), obs=x)


class Guide(nn.Module):
    """The exact posterior, off by a learned shift of the logits."""

    def __init__(self, model: Mixture):
        super().__init__()
        self.held = (model,)
        self.shift = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> None:
        announce(self, "guide")
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(logits=self.held[0].joint(x) + self.shift))


@pytest.mark.parametrize("objective", [ELBO(), ELBO(3), IWAE(3)])
def test_the_bound_is_the_likelihood_whatever_the_guide_draws(objective: Objective) -> None:
    model = Mixture()
    over = Enumerated(objective, over=("k",))
    loss = over.differentiable_loss(model, Guide(model), X)
    exact = -model.joint(X).logsumexp(1).sum()
    torch.testing.assert_close(loss, exact)
    (found,) = torch.autograd.grad(loss, [model.means])
    (wanted,) = torch.autograd.grad(exact, [model.means])
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("compiled", [False, True])
def test_steps_train_the_model_and_leave_the_guide(compiled: bool) -> None:
    model = Mixture()
    guide = Guide(model)
    by_hand = Mixture()
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.5)
    step = Step(
        model, guide, Enumerated(over=("k",)), partial(torch.optim.SGD, lr=0.5), compiled=compiled
    )
    for _ in range(4):
        loss = -by_hand.joint(X).logsumexp(1).mean()
        torch.testing.assert_close(step(X), loss.detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert step.fallback_reason is None
    torch.testing.assert_close(model.means, by_hand.means)
    assert not guide.shift.any()


def test_other_latents_of_the_guide_stay() -> None:
    def model(x: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(WEIGHTS))
            pyro.sample("x", dist.Normal(mean + k, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("mean", dist.Delta(torch.tensor(0.5), event_dim=0))
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(torch.tensor([0.5, 0.5])))

    found = Enumerated(over=("k",)).loss(model, guide, X)
    joint = WEIGHTS.log() + dist.Normal(torch.tensor([0.5, 1.5]), 1.0).log_prob(X[:, None])
    prior = dist.Normal(0.0, 1.0).log_prob(torch.tensor(0.5))
    assert found == pytest.approx(-(joint.logsumexp(1).sum() + prior).item(), rel=1e-6)


def test_what_cannot_be_summed_out_is_refused() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(SiteMismatchError, match=r"\['z'\].*over=\('z',\) hides"):
        Enumerated(over=("z",)).loss(model, guide, X)


def test_names_are_given_as_a_tuple() -> None:
    with unchecked(), pytest.raises(OptionError, match=r"over=\['k'\] is no tuple"):
        Enumerated(over=["k"])  # type: ignore[arg-type]
    assert repr(Enumerated(over=("k",))) == (
        "Enumerated(ELBO(num_particles=1, kl=AnalyticKL()), over=('k',))"
    )

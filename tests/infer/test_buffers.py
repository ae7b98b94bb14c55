"""Buffers in the graph of a gradient: no dry run may write to them."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch._inductor.config as inductor
from pyro.distributions.transforms import affine_autoregressive
from torch import Tensor, nn

from pyro_models.infer import (
    ELBO,
    IWAE,
    Enumerated,
    LeaveOneOut,
    Objective,
    ScoreFunction,
    Step,
)
from pyro_models.infer.diagnostics import gradient_noise
from pyro_models.programs import data_plate
from tests.infer.step_cases import sgd

X = torch.linspace(-1.0, 2.0, 8).reshape(4, 2)


class Gain(nn.Module):
    """A factor that is no parameter."""

    gain: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("gain", torch.full((3,), 1.5))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


def network(middle: nn.Module) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 3), middle, nn.Linear(3, 1), nn.Flatten(0))


class Model(nn.Module):
    """A normal and a discrete latent, and a network that it may share with its guide."""

    def __init__(self, net: nn.Module | None = None, discrete: bool = True) -> None:
        super().__init__()
        self.net, self.discrete = net, discrete
        self.mean = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> None:
        with data_plate(len(x), None):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            if self.discrete:
                z = z + pyro.sample("k", dist.Bernoulli(torch.tensor(0.3)))
            if self.net is not None:
                z = z + self.net(x)
            pyro.sample("x", dist.Normal(z.unsqueeze(-1) * self.mean, 1.0).to_event(1), obs=x)


class Guide(nn.Module):
    def __init__(self, net: nn.Module, discrete: bool = False) -> None:
        super().__init__()
        self.net, self.discrete = net, discrete

    def forward(self, x: Tensor) -> None:
        with data_plate(len(x), None):
            loc = self.net(x)
            pyro.sample("z", dist.Normal(loc, 1.0))
            if self.discrete:
                pyro.sample("k", dist.Bernoulli(logits=loc))


def pair(middle: nn.Module) -> tuple[Model, Guide]:
    return Model(), Guide(network(middle), discrete=True)


def score_function() -> Objective:
    return ScoreFunction(2, LeaveOneOut())


def assert_learns(loss: Tensor, net: nn.Module) -> None:
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("batch_norm", [False, True])
def test_by_the_score(batch_norm: bool) -> None:
    model, guide = pair(nn.BatchNorm1d(3) if batch_norm else Gain())
    guide.eval()
    assert_learns(score_function().differentiable_loss(model, guide, X), guide.net)


def test_running_statistics_move_by_the_run_itself_alone() -> None:
    norm = nn.BatchNorm1d(3)
    model, guide = pair(norm)
    loss = score_function().differentiable_loss(model, guide, X)
    assert norm.num_batches_tracked is not None
    assert norm.num_batches_tracked == 1
    hidden = guide.net[0](X)  # type: ignore[index]
    torch.testing.assert_close(norm.running_mean, 0.1 * hidden.mean(0).detach())
    assert_learns(loss, guide.net)


def test_gradients_by_the_score_are_those_without_a_dry_run() -> None:
    """The first run of a pair has dry runs, and later ones none."""
    model, guide = pair(Gain())
    found = []
    for _ in range(2):
        pyro.set_rng_seed(0)
        loss = score_function().differentiable_loss(model, guide, X)
        found.append(torch.autograd.grad(loss, list(guide.parameters())))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("objective", [IWAE(2), ELBO(3)], ids=repr)
def test_the_sum_of_two_losses_with_a_network_in_common(objective: Objective) -> None:
    net = network(Gain())
    losses = [objective.differentiable_loss(Model(discrete=False), Guide(net), X) for _ in range(2)]
    assert_learns(losses[0] + losses[1], net)


def test_a_network_that_guide_and_enumerated_model_share() -> None:
    net = network(Gain())
    assert_learns(Enumerated().differentiable_loss(Model(net), Guide(net), X), net)


def test_flows_whose_masks_are_buffers() -> None:
    flow = affine_autoregressive(2, hidden_dims=[4])

    def model(x: Tensor) -> None:
        with data_plate(len(x), None):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        base = dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1)
        with data_plate(len(x), None):
            pyro.sample("z", dist.TransformedDistribution(base, [flow]))

    assert_learns(ScoreFunction(2).differentiable_loss(model, guide, X), flow)


def test_noise_of_gradients() -> None:
    model, guide = pair(Gain())
    measured = gradient_noise(model, guide, X, {"score": score_function()}, 4)
    assert measured.side("score", "guide").snr > 0


@inductor.patch(fallback_random=True)
def test_compiled_is_eager() -> None:
    ends: list[Any] = []
    for compiled in (False, True):
        model, guide = pair(nn.Sequential(Gain(), nn.BatchNorm1d(3)))
        pyro.set_rng_seed(1)
        step = Step(model, guide, score_function(), sgd, compiled=compiled)
        losses = [step(X).item() for _ in range(4)]
        assert step.fallback_reason is None
        assert len(step._graphs) == int(compiled)
        ends.append((losses, {**step.parameters(), **dict(guide.named_buffers())}))
    assert ends[0][0] == pytest.approx(ends[1][0], rel=1e-4)
    torch.testing.assert_close(ends[1][1], ends[0][1], rtol=1e-3, atol=1e-4)

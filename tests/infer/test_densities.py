"""Flows without an inverse: where their densities are known, and what is said elsewhere."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.transforms import (
    ComposeTransformModule,
    Planar,
    Radial,
    affine_autoregressive,
)
from torch import Tensor, nn

from pyro_models.errors import OptionError
from pyro_models.infer import (
    ELBO,
    IWAE,
    VIMCO,
    DoublyReparameterized,
    LeaveOneOut,
    Objective,
    Pathwise,
    ReweightedWakeSleep,
    ScoreFunction,
    StickingTheLanding,
    ThermodynamicELBO,
)

X = torch.tensor([[0.3, -1.2], [2.0, 0.7], [0.1, 0.4]])

REFUSED: dict[str, Callable[[], Objective]] = {
    "STL": lambda: IWAE(3, StickingTheLanding()),
    "DReG": lambda: IWAE(3, DoublyReparameterized()),
    "score": lambda: ScoreFunction(3, LeaveOneOut()),
    "wake": lambda: ReweightedWakeSleep(3),
    "thermodynamic": lambda: ThermodynamicELBO(3),
}
WELCOME: dict[str, Callable[[], Objective]] = {
    "ELBO": ELBO,
    "IWAE": lambda: IWAE(2),
    "VIMCO": lambda: VIMCO(2),
    "pathwise": lambda: ScoreFunction(3, sites={"z": Pathwise()}),
}


def model(x: Tensor, flow: Any = None, likelihood: Any = None) -> None:
    with pyro.plate("data", len(x)):
        start = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        z = pyro.sample("z", dist.TransformedDistribution(start, [flow]) if flow else start)
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


class Flow(nn.Module):
    """z is 0.2 x plus noise, through a flow, and perhaps another latent is drawn from it."""

    def __init__(self, flow: Any) -> None:
        super().__init__()
        self.flow = flow
        self.slope = nn.Parameter(torch.tensor(0.2))

    def forward(self, x: Tensor, *_: Any) -> None:
        with pyro.plate("data", len(x)):
            start = dist.Normal(self.slope * x, torch.ones(2)).to_event(1)
            pyro.sample("z", dist.TransformedDistribution(start, [self.flow]))


@pytest.mark.parametrize("name", WELCOME)
def test_at_fresh_draws_they_are_known(name: str) -> None:
    """The gradient is that of the density of what was drawn, through the flow's parameters too."""
    guide = Flow(Planar(2))
    WELCOME[name]().differentiable_loss(model, guide, X).backward()
    grads = {n: p.grad for n, p in guide.named_parameters()}
    assert all(g is not None and g.isfinite().all() for g in grads.values()), grads
    assert all(g.abs().max() > 0 for g in grads.values() if g is not None)


def test_the_bound_is_the_one_of_the_density_by_hand() -> None:
    """log q from the base's density and the flow's Jacobian by automatic differentiation."""
    flow = Planar(2)
    with torch.no_grad():
        flow.bias.fill_(0.3)
    seen: dict[str, Tensor] = {}

    class Watched(Flow):
        def forward(self, x: Tensor, *_: Any) -> None:
            with pyro.plate("data", len(x)):
                noise = torch.randn(3, 2)
                base = dist.Delta(noise, log_density=-noise.square() / 2).to_event(1)
                seen["noise"] = noise
                pyro.sample("z", dist.TransformedDistribution(base, [self.flow]))

    loss = ELBO().loss(model, Watched(flow), X)
    noise = seen["noise"]
    z = flow(noise)
    jacobian = torch.stack([torch.autograd.functional.jacobian(flow, row) for row in noise])
    log_q = (-noise.square() / 2).sum(-1) - torch.linalg.slogdet(jacobian).logabsdet
    log_p = dist.Normal(0.0, 1.0).log_prob(z).sum(-1) + dist.Normal(z, 1.0).log_prob(X).sum(-1)
    assert loss == pytest.approx((log_q - log_p).sum().item(), rel=1e-4)


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("kind", ["Planar", "Radial"])
def test_elsewhere_site_and_transform_are_named(name: str, kind: str) -> None:
    flow: Any = Planar(2) if kind == "Planar" else ComposeTransformModule([Radial(2)])
    words = rf"'z' has the transform {kind}, which has no inverse.*ELBO.*Pathwise"
    with pytest.raises(OptionError, match=words):
        REFUSED[name]().loss(model, Flow(flow), X)


@pytest.mark.parametrize("name", REFUSED)
def test_a_flow_with_an_inverse_is_welcome_everywhere(name: str) -> None:
    loss = REFUSED[name]().loss(model, Flow(affine_autoregressive(2, [8])), X)
    assert loss == pytest.approx(loss)


def test_a_prior_of_the_models_own() -> None:
    """The guide's draw is none of the prior's: no objective can help there."""
    with pytest.raises(OptionError, match=r"'z' has the transform Planar.*give the model a flow"):
        ELBO().loss(model, Flow(affine_autoregressive(2, [8])), X, Planar(2))


def test_a_transform_of_which_nobody_wrote_the_inverse() -> None:
    class OneWay(torch.distributions.Transform):
        domain = codomain = torch.distributions.constraints.real_vector
        bijective = True

        def _call(self, x: Tensor) -> Tensor:
            return 2 * x

        def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
            return torch.full(x.shape[:-1], 2.0).log() * 2

    with pytest.raises(OptionError, match="'z' has the transform OneWay"):
        ReweightedWakeSleep(2).loss(model, Flow(OneWay()), X)


def test_other_errors_stay_what_they_are() -> None:
    class Broken(dist.Normal):
        def log_prob(self, value: Tensor) -> Tensor:
            raise KeyError("a table of mine has no such row")

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", Broken(torch.zeros(2), 1.0).to_event(1))

    with pytest.raises(KeyError, match="a table of mine"):
        ELBO().loss(model, guide, X)

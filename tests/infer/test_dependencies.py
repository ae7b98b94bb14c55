"""Which densities depend on which draws, however the draw gets there."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from pyro_models.infer.dependencies import dependents


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, z: Tensor) -> Tensor:
        return z * 2

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient * 2


def written(z: Tensor) -> Tensor:
    loc = torch.zeros(3)
    loc[0] = z
    return loc.sum()


# Seen through, so that the other latent's site stays apart.
CLEAR: dict[str, Callable[[Tensor], Tensor]] = {
    "itself": lambda z: z,
    "index": lambda z: torch.arange(5.0)[(z > 0).long()],
    "where": lambda z: torch.where(z > 0, torch.tensor(1.0), torch.tensor(2.0)),
    "custom function": Twice.apply,
    "written in place": written,
    "added in place": lambda z: torch.zeros(()).add_(z),
    "out": lambda z: torch.mul(z, 2, out=torch.zeros(())),
    "vmap": lambda z: torch.vmap(lambda a: a * 2)(z.expand(3)).sum(),
    "detached": lambda z: z.detach(),
    "sorted": lambda z: z.expand(3).sort()[0][0],
}
# Lost, so that everything may depend.
HIDDEN: dict[str, Callable[[Tensor], Tensor]] = {
    "item": lambda z: torch.tensor(z.item()),
    "branch": lambda z: torch.tensor(1.0 if z > 0 else 2.0),
    "equal": lambda z: torch.tensor(1.0 if torch.equal(z, torch.zeros(())) else 2.0),
    "numpy": lambda z: torch.as_tensor(z.numpy() * 1),
    "tolist": lambda z: torch.tensor(z.tolist()),
    "shape": lambda z: torch.tensor(float(len((z > 0).reshape(1).nonzero()))),
}


def survey(through: Callable[[Tensor], Tensor]) -> dict[str, frozenset[str]]:
    def guide() -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("w", dist.Normal(0.0, 1.0))

    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(through(z), 1.0), obs=torch.tensor(1.0))
        pyro.sample("y", dist.Normal(w, 1.0), obs=torch.tensor(1.0))

    return dependents(model, guide, (), {})


@pytest.mark.parametrize("how", CLEAR)
def test_seen_through(how: str) -> None:
    assert survey(CLEAR[how]) == {"z": frozenset("zx"), "w": frozenset("wy")}


@pytest.mark.parametrize("how", HIDDEN)
def test_hidden(how: str) -> None:
    assert survey(HIDDEN[how]) == {}


def chain(length: int, last: bool = True) -> None:
    z = torch.zeros(())
    for i in range(length):
        z = pyro.sample(f"z{i}", dist.Normal(z, 1.0))
    pyro.factor("f", z if last else torch.zeros(()))


def test_arguments_tell_structures_apart() -> None:
    assert dependents(chain, chain, (2, False), {})["z0"] == {"z0", "z1"}
    assert dependents(chain, chain, (3, True), {})["z0"] == {"z0", "z1", "z2", "f"}
    assert dependents(chain, chain, (3, True), {})["z2"] == {"z2", "f"}


def test_branches_on_data_are_not_remembered() -> None:
    def guide(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z if x > 0 else 0.0 * x, 1.0), obs=x)

    assert dependents(model, guide, (torch.tensor(-1.0),), {})["z"] == {"z"}
    assert dependents(model, guide, (torch.tensor(1.0),), {})["z"] == {"z", "x"}


def test_masks_depend_too() -> None:
    def guide() -> None:
        pyro.sample("k", dist.Bernoulli(0.5))

    def model() -> None:
        k = pyro.sample("k", dist.Bernoulli(0.5))
        with poutine.mask(mask=k > 0):  # type: ignore[call-overload]
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.tensor(1.0))

    assert dependents(model, guide, (), {})["k"] == {"k", "x"}


def test_nothing_is_left_behind() -> None:
    flag, state = torch.distributions.Distribution._validate_args, torch.get_rng_state()
    survey(CLEAR["itself"])
    survey(HIDDEN["item"])
    assert torch.distributions.Distribution._validate_args is flag
    assert torch.equal(torch.get_rng_state(), state)

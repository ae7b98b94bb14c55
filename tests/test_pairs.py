"""Pairs by name: what they choose from the data, and what they refuse."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from guides import Full
from pyro_models import data, pairs
from pyro_models.errors import DataError, OptionError, SupportError
from pyro_models.infer import ELBO, MonteCarloKL
from pyro_models.likelihoods import (
    Bernoulli,
    Categorical,
    ContinuousBernoulli,
    FixedScale,
    LearnedScale,
    Normal,
    OptimalScale,
    Poisson,
)
from pyro_models.networks import Standardize
from pyro_models.priors import StandardNormal
from tests.unchecked import unchecked

BINARY = torch.tensor([[0.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
GREY = torch.tensor([[0.0, 0.2, 1.0], [0.5, 1.0, 0.0]])
REAL = torch.tensor([[-4.0, 100.5], [2.0, 300.0], [1.0, 200.0]])
WHOLE = torch.tensor([[0.0, 4.0], [2.0, 16.0]])


def output_bias(pair: pairs.Pair) -> Tensor:
    return pair.model.get_parameter("decoder.output.bias")


def test_names_are_sorted_and_every_one_has_options() -> None:
    assert list(pairs.names()) == sorted(pairs.names())
    assert "vae" in pairs.names()
    assert all("data_dim" not in pairs.options(name) for name in pairs.names())


def test_a_pair_is_a_frozen_record() -> None:
    pair = pairs.vae(3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        pair.model = nn.Identity()  # type: ignore[misc]
    assert isinstance(pair.objective, ELBO)


def test_encoder_and_decoder_mirror_each_other() -> None:
    pair = pairs.vae(30, latent_dim=2, hidden=(20, 10))
    encoder = [p.shape for p in pair.guide.encoder.parameters()]  # type: ignore[union-attr]
    decoder = [p.shape for p in pair.model.decoder.parameters()]  # type: ignore[union-attr]
    assert [tuple(s) for s in encoder[::2]] == [(20, 30), (10, 20), (4, 10)]
    assert [tuple(s) for s in decoder[::2]] == [(10, 2), (20, 10), (30, 20)]


def test_options_reach_their_places() -> None:
    prior = StandardNormal(4)
    objective = ELBO(num_particles=3, kl=MonteCarloKL())
    pair = pairs.build(
        "vae",
        BINARY,
        latent_dim=4,
        hidden=(5,),
        covariance=Full(),
        prior=prior,
        activation=nn.ReLU,
        objective=objective,
        preprocess=nn.Identity(),
    )
    assert pair.objective is objective
    assert pair.model.prior is prior
    assert pair.guide.covariance == Full()
    for network in (pair.model.decoder, pair.guide.encoder):
        assert any(isinstance(layer, nn.ReLU) for layer in network.modules())  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("x", "kind"), [(BINARY, Bernoulli), (GREY, ContinuousBernoulli), (REAL, Normal)]
)
def test_the_likelihood_follows_from_the_values(x: Tensor, kind: type) -> None:
    assert isinstance(pairs.build("vae", x).model.likelihood, kind)


def test_a_learned_scale_starts_at_the_spread_of_the_data() -> None:
    scale = pairs.build("vae", REAL).model.likelihood.scale  # type: ignore[union-attr]
    assert isinstance(scale, LearnedScale)
    spread = (REAL - REAL.mean(0)).square().mean().sqrt()
    assert torch.allclose(scale(REAL, None), spread)


def test_constant_real_data_get_a_scale_too() -> None:
    pair = pairs.build("vae", torch.full((3, 2), -7.5))
    assert pair.model(num_data=2).isfinite().all()


def test_whole_numbers_are_asked_about() -> None:
    with pytest.raises(OptionError, match=r"from 0 to 16; .*Poisson.*Categorical\(17\).*by 16"):
        pairs.build("vae", WHOLE)
    for likelihood in (Poisson(), Categorical(17), Normal(OptimalScale())):
        pairs.build("vae", WHOLE, likelihood=likelihood)


def test_grey_levels_that_fit_will_binarise_may_have_a_bernoulli() -> None:
    pair = pairs.build("vae", GREY, likelihood=Bernoulli())
    assert torch.allclose(output_bias(pair).sigmoid(), GREY.mean(0).clamp(0.001, 0.999))


@pytest.mark.parametrize(
    ("x", "likelihood"),
    [
        (WHOLE, Bernoulli()),
        (REAL, ContinuousBernoulli()),
        (REAL, Poisson()),
        (GREY, Categorical(2)),
    ],
)
def test_a_likelihood_that_cannot_explain_the_data_is_refused(x: Tensor, likelihood: Any) -> None:
    with pytest.raises(SupportError):
        pairs.build("vae", x, likelihood=likelihood)


def test_the_encoder_sees_data_of_size_one() -> None:
    assert isinstance(pairs.build("vae", BINARY).guide.preprocess, nn.Identity)
    preprocess = pairs.build("vae", REAL).guide.preprocess
    assert isinstance(preprocess, Standardize)
    assert torch.allclose(preprocess(REAL).std(0, correction=0), torch.ones(2))


@pytest.mark.parametrize(
    "given",
    [
        BINARY,
        BINARY.numpy(),
        BINARY.numpy().astype(np.uint8),
        BINARY.bool(),
        BINARY.tolist(),
        data.from_array(BINARY),
        BINARY.reshape(2, 1, 1, 3),
    ],
    ids=["tensor", "array", "bytes", "booleans", "list", "record", "images"],
)
def test_data_come_in_any_form(given: Any) -> None:
    pair = pairs.build("vae", given)
    assert pair.model.data_dim == 3
    assert torch.allclose(output_bias(pair).sigmoid(), BINARY.mean(0), atol=2e-3)


def test_parameters_take_the_type_of_a_tensor() -> None:
    pair = pairs.build("vae", REAL.double())
    assert pair.model(REAL.double()).dtype == torch.float64
    assert pair.guide(REAL.double()).dtype == torch.float64
    assert pairs.build("vae", REAL.double().numpy()).model(REAL).dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("vea", {}, "no pair 'vea'.*did you mean 'vae'.*the pairs are .*vae"),
        ("quux", {}, "no pair 'quux'; the pairs are"),
        ("vae", {"latentdim": 2}, "no option 'latentdim'.*did you mean 'latent_dim'.*likelihood"),
        ("vae", {"data_dim": 3}, "no option 'data_dim'"),
        ("vae", {"latent_dim": 0}, "latent_dim=0"),
        ("vae", {"hidden": (0,)}, r"hidden\[0\]"),
        ("vae", {"hidden": 200}, r"write \(200,\)"),
        ("vae", {"likelihood": "bernoulli"}, r"likelihoods.Bernoulli\(\)"),
        ("vae", {"covariance": "full"}, r"guides.Full\(\)"),
        ("vae", {"objective": "elbo"}, r"ELBO\(\)"),
        ("vae", {"likelihood": Normal(LearnedScale(data_dim=7))}, "7 dimensions"),
    ],
)
def test_what_is_misspelt_or_cannot_work_is_refused(
    name: str, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(OptionError, match=words), unchecked():
        pairs.build(name, BINARY, **options)


@pytest.mark.parametrize("bad", [[], [[1.0, float("nan")]], [["a"]]])
def test_what_is_no_data_is_refused(bad: list[Any]) -> None:
    with pytest.raises(DataError):
        pairs.build("vae", bad)


def test_pairs_with_the_same_options_share_nothing() -> None:
    first, second = pairs.build("vae", REAL), pairs.build("vae", REAL)
    one = {id(p) for m in (first.model, first.guide) for p in m.parameters()}
    other = {id(p) for m in (second.model, second.guide) for p in m.parameters()}
    assert not one & other
    assert first.objective is not second.objective


def test_a_fixed_scale_is_no_parameter() -> None:
    pair = pairs.build("vae", REAL, likelihood=Normal(FixedScale(2.0)))
    assert not any("likelihood" in name for name, _ in pair.model.named_parameters())

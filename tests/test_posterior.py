import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import arviz
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from pyro_models.errors import DataError, OptionError, SiteMismatchError
from pyro_models.posterior import to_arviz, write_netcdf

GROUPS = {
    "posterior",
    "posterior_predictive",
    "log_likelihood",
    "prior",
    "prior_predictive",
    "observed_data",
}


def model(x: Tensor) -> None:
    """z ~ N(0, I), x ~ N(z, 0.5^2 I)."""
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)


def guide(x: Tensor) -> None:
    """The exact posterior: N(0.8 x, 0.2)."""
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(0.8 * x, 0.2**0.5).to_event(1))


def group(idata: Any, name: str) -> xarray.Dataset:
    found = idata[name]
    return found if isinstance(found, xarray.Dataset) else found.to_dataset()


def test_groups_dimensions_and_coordinates() -> None:
    x = torch.randn(3, 2)
    idata = to_arviz(model, guide, x, num_samples=5)
    dims = {
        "posterior": ("z", ("chain", "draw", "data", "z_dim"), (1, 5, 3, 2)),
        "prior": ("z", ("chain", "draw", "data", "z_dim"), (1, 5, 3, 2)),
        "posterior_predictive": ("x", ("chain", "draw", "data", "x_dim"), (1, 5, 3, 2)),
        "prior_predictive": ("x", ("chain", "draw", "data", "x_dim"), (1, 5, 3, 2)),
        "log_likelihood": ("x", ("chain", "draw", "data"), (1, 5, 3)),
        "observed_data": ("x", ("data", "x_dim"), (3, 2)),
    }
    assert set(dims) == GROUPS
    for name, (site, names, shape) in dims.items():
        dataset = group(idata, name)
        assert list(dataset.data_vars) == [site]
        assert (dataset[site].dims, dataset[site].shape) == (names, shape)
        for dim, size in zip(names, shape, strict=True):
            assert dataset.coords[dim].values.tolist() == list(range(size))
    np.testing.assert_array_equal(group(idata, "observed_data")["x"].values, x.numpy())


def test_it_is_what_this_arviz_uses() -> None:
    idata = to_arviz(model, guide, torch.randn(3, 2), num_samples=5)
    if arviz.__version__.startswith("0."):
        assert type(idata) is arviz.InferenceData
    else:
        assert type(idata) is xarray.DataTree
    extracted = arviz.extract(idata, var_names="z")
    assert extracted.sizes["sample"] == 5


def test_one_chain_and_no_pretence() -> None:
    idata = to_arviz(model, guide, torch.randn(3, 2), num_samples=5)
    for attrs in (idata.attrs, group(idata, "posterior").attrs):
        assert attrs["inference"] == "variational"
        assert "R-hat" in attrs["sampling"]
        assert attrs["created_at"]


def test_draws_have_the_right_distributions() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 2)
    draws = 4000
    idata = to_arviz(model, guide, x, num_samples=draws)
    moments = {
        ("posterior", "z"): (0.8 * x.numpy(), 0.2),
        ("posterior_predictive", "x"): (0.8 * x.numpy(), 0.45),
        ("prior", "z"): (np.zeros((4, 2)), 1.0),
        ("prior_predictive", "x"): (np.zeros((4, 2)), 1.25),
    }
    for (name, site), (mean, variance) in moments.items():
        values = group(idata, name)[site].values[0]
        assert (np.abs(values.mean(0) - mean) < 4.5 * math.sqrt(variance / draws)).all()
        assert (np.abs(values.var(0) / variance - 1) < 4.5 * math.sqrt(2 / draws)).all()


def test_groups_belong_together_draw_by_draw() -> None:
    x = torch.randn(4, 2)
    idata = to_arviz(model, guide, x, num_samples=300)
    z = torch.tensor(group(idata, "posterior")["z"].values)
    expected = dist.Normal(z, 0.5).log_prob(x).sum(-1)
    found = torch.tensor(group(idata, "log_likelihood")["x"].values)
    torch.testing.assert_close(found, expected)
    for prefix, source in (("posterior", "posterior"), ("prior", "prior")):
        noise = group(idata, f"{prefix}_predictive")["x"].values - group(idata, source)["z"].values
        assert noise.std() == pytest.approx(0.5, abs=4.5 * 0.5 / math.sqrt(2 * noise.size))


def test_names_coordinates_and_labels_of_ones_own() -> None:
    idata = to_arviz(
        model,
        guide,
        torch.randn(3, 2),
        num_samples=2,
        dims={"x": ["feature"]},
        coords={"feature": ["length", "width"], "data": [10, 20, 30]},
        labels=["a", "b", "a"],
    )
    predictive = group(idata, "posterior_predictive")
    assert predictive["x"].dims == ("chain", "draw", "data", "feature")
    assert predictive.coords["feature"].values.tolist() == ["length", "width"]
    assert predictive.sel(data=20, feature="width")["x"].shape == (1, 2)
    for name in GROUPS:
        assert group(idata, name).coords["label"].values.tolist() == ["a", "b", "a"]
    labelled = to_arviz(
        model, guide, torch.randn(3, 2), num_samples=2, labels=torch.tensor([1, 0, 1])
    )
    assert group(labelled, "posterior").coords["label"].values.tolist() == [1, 0, 1]


def test_images_get_a_dimension_each() -> None:
    def images(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            mean = z[..., None, None].expand(*z.shape, 2, 3)
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(2), obs=x)

    def half(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x.mean((-1, -2)), 1.0))

    idata = to_arviz(images, half, torch.randn(4, 2, 3), num_samples=2)
    assert group(idata, "posterior")["z"].dims == ("chain", "draw", "data")
    assert group(idata, "observed_data")["x"].dims == ("data", "x_dim_0", "x_dim_1")


def hierarchical(x: Tensor, y: Tensor) -> None:
    """A user's program: global latents, a plate of groups, a data plate of another name."""
    groups = pyro.plate("group", 2, dim=-1)
    scale = pyro.sample("scale", dist.LogNormal(-1.0, 0.1))
    with groups:
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    pyro.factor("penalty", -0.1 * scale.square())
    pyro.deterministic("twice", 2 * scale, event_dim=0)
    with pyro.plate("row", len(x), dim=-1):
        mean = slope[..., [0, 1, 0, 1]] * x
        pyro.sample("y", dist.Normal(mean, scale), obs=y)


@pytest.fixture
def user() -> Iterator[tuple[AutoNormal, tuple[Tensor, Tensor]]]:
    data = (torch.randn(4), torch.randn(4))
    with pyro.get_param_store().scope():
        guide = AutoNormal(hierarchical, init_scale=0.1)
        guide(*data)
        yield guide, data


def test_a_user_s_program_with_an_autoguide(user: Any) -> None:
    guide, data = user
    idata = to_arviz(hierarchical, guide, data, num_samples=7)
    posterior = group(idata, "posterior")
    assert set(posterior.data_vars) == {"scale", "slope"}
    assert posterior["scale"].dims == ("chain", "draw")
    assert posterior["slope"].dims == ("chain", "draw", "group")
    assert group(idata, "prior_predictive")["y"].dims == ("chain", "draw", "data")
    assert group(idata, "log_likelihood")["y"].shape == (1, 7, 4)
    slope = torch.tensor(posterior["slope"].values)[..., [0, 1, 0, 1]]
    scale = torch.tensor(posterior["scale"].values)[..., None]
    expected = dist.Normal(slope * data[0], scale).log_prob(data[1])
    torch.testing.assert_close(torch.tensor(group(idata, "log_likelihood")["y"].values), expected)
    np.testing.assert_array_equal(group(idata, "observed_data")["y"].values, data[1].numpy())


def test_global_latents_are_shared_by_all_data_of_a_draw(user: Any) -> None:
    def common(x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 100.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1e-3), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("mu", dist.Normal(x.mean(), 100.0))

    idata = to_arviz(common, guide, torch.randn(5), num_samples=20, max_memory=10_000)
    for name in ("posterior_predictive", "prior_predictive"):
        values = group(idata, name)["x"].values[0]
        assert values.std(-1).max() < 0.01
        assert values.std(0).min() > 10


def test_a_prediction_depends_on_predictions_not_on_data() -> None:
    def chain(x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            first = pyro.sample("x", dist.Normal(z, 1.0), obs=x)
            pyro.sample("y", dist.Normal(first, 1e-3), obs=y)

    def guide(x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0))

    idata = to_arviz(chain, guide, (torch.randn(3), torch.randn(3)), num_samples=10)
    predictive = group(idata, "posterior_predictive")
    np.testing.assert_allclose(predictive["x"].values, predictive["y"].values, atol=0.01)


def test_memory_is_bounded_and_chunks_keep_their_order() -> None:
    counts: list[int] = []

    def spy(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.8 * x, 0.2**0.5).to_event(1))
        counts.append(z.numel() // 400)

    x = torch.randn(200, 2)
    # One draw of the result takes 200 * (2 * 4 + 1) * 4 bytes.
    result = 50 * 200 * 9 * 4
    idata = to_arviz(model, spy, x, num_samples=50, max_memory=result + 200_000)
    assert max(counts) < 50
    z = torch.tensor(group(idata, "posterior")["z"].values)
    expected = dist.Normal(z, 0.5).log_prob(x).sum(-1)
    torch.testing.assert_close(torch.tensor(group(idata, "log_likelihood")["x"].values), expected)
    assert len(torch.unique(z[0, :, 0, 0])) == 50
    with pytest.raises(OptionError, match="ask for at most 49 draws"):
        to_arviz(model, guide, x, num_samples=50, max_memory=result - 1)


def test_written_and_read_back(tmp_path: Path) -> None:
    idata = to_arviz(model, guide, torch.randn(3, 2), num_samples=5, labels=["a", "b", "c"])
    path = write_netcdf(idata, tmp_path / "posterior.nc")
    assert [file.name for file in tmp_path.iterdir()] == ["posterior.nc"]
    back = arviz.from_netcdf(str(path), engine="h5netcdf")
    for name in GROUPS:
        xarray.testing.assert_identical(group(back, name).load(), group(idata, name))
    assert dict(back.attrs) == dict(idata.attrs)
    back.close()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    class Broken:
        def to_netcdf(self, path: str, engine: str) -> None:
            Path(path).write_bytes(b"half")
            raise OSError("the disk is full")

    path = tmp_path / "posterior.nc"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="full"):
        write_netcdf(Broken(), path)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["posterior.nc"]


def test_what_does_not_fit_is_refused() -> None:
    x = torch.randn(3, 2)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"num_samples": 0}, "num_samples=0"),
        ({"dims": {"w": ["a"]}}, r"dims names \['w'\]"),
        ({"dims": {"x": ["a", "b"]}}, "2 dimensions for 'x'"),
        ({"coords": {"nowhere": [1]}}, "'nowhere'"),
        ({"coords": {"data": [1, 2]}}, "2 values for 'data'"),
    ]
    for options, message in cases:
        with pytest.raises(OptionError, match=message):
            to_arviz(model, guide, x, **options)
    with pytest.raises(DataError, match="one for each of 3 data"):
        to_arviz(model, guide, x, labels=[1, 2])
    with pytest.raises(DataError, match="holds no data"):
        to_arviz(model, guide, torch.zeros(0, 2))
    with pytest.raises(SiteMismatchError, match="'z'"):
        to_arviz(model, lambda x: None, x)


def test_same_seed_same_draws() -> None:
    x = torch.randn(3, 2)
    values = []
    for _ in range(2):
        torch.manual_seed(5)
        values.append(group(to_arviz(model, guide, x, num_samples=9), "prior_predictive")["x"])
    np.testing.assert_array_equal(values[0].values, values[1].values)


def test_missing_values_are_missing_in_the_observed_data() -> None:
    class Filled(torch.nn.Module):
        accepts_missing = True

        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                there = ~x.isnan()
                with pyro.poutine.mask(mask=there):  # type: ignore[call-overload]
                    pyro.sample("x", dist.Normal(z, 1.0), obs=x.nan_to_num())

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    x = torch.tensor([1.0, torch.nan, 0.0])
    idata = to_arviz(Filled(), guide, x, num_samples=2)
    np.testing.assert_array_equal(idata.observed_data["x"].values, x.numpy())
    assert idata.log_likelihood["x"].values[..., 1].tolist() == [[0.0, 0.0]]

"""Pairs with exact steps under the command: EM in a run's folder, tables and pictures that fit."""

import itertools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from guides import AmortizedCategorical, LinearGaussian
from pyro_models import pairs
from pyro_models.cli import exact, fitted
from pyro_models.cli.recipe import prepare
from pyro_models.cli.report import _closed_form
from pyro_models.cli.runs import RunFolder
from pyro_models.infer import checkpoint, em
from pyro_models.infer.arrays import as_tensors
from pyro_models.pairs.relevance import relevance
from pyro_models.posterior import arviz
from tests.test_cli import Called, call, final_tensors, without_time

ALWAYS = {"checkpoint", "config.json", "history.json", "loss.png", "posterior.nc", "report.json"}
ALWAYS |= {"samples.png"}
CODES = {"latent.png", "reconstructions.png", "traversal.png"}


def fit(pair: str, out: Path, *arguments: object) -> Called:
    return call("fit", pair, "--out", out, "--quiet", *arguments)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Called]:
    folder = tmp_path_factory.mktemp("runs") / "mixture"
    return folder, fit("gaussian_mixture", folder, "--num-components", 2, "--seed", 1)


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Called]:
    folder = tmp_path_factory.mktemp("runs") / "short"
    return folder, fit("gaussian_mixture", folder, "--epochs", 3)


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Called]:
    folder = tmp_path_factory.mktemp("runs") / "ppca"
    return folder, fit("ppca", folder, "--data", "wine", "--latent-dim", 2)


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def rows(folder: Path) -> dict[str, dict]:
    written = json.loads((folder / "report.json").read_text())
    return {row["name"]: row for row in written["rows"]}


def test_a_mixture_is_fitted_to_iris_by_em_from_several_starts(mixture):
    folder, called = mixture
    assert called.status == 0, called.err
    config = RunFolder(folder).config()
    assert (config.source.name, config.num_components, config.latent_dim) == ("iris", 2, None)
    assert config.epochs == exact.EPOCHS
    record = checkpoint.read(folder / "checkpoint").record
    assert record["converged"]
    assert record["message"].startswith("best of 10 starts")
    # The same by the library's own call.
    prepared = prepare(config.source, config.seed)
    pair = fitted.make(config, prepared)
    x = prepared.seen(prepared.parts.train)
    result = em(pair.model, x, restarts=10, seed=config.seed, progress=False)
    history = json.loads((folder / "history.json").read_text())
    assert history[-1]["elbo"] == result.elbo
    bounds = [epoch["elbo"] for epoch in history]
    assert all(b >= a - 1e-6 for a, b in itertools.pairwise(bounds))
    held_out = pair.model.log_prob(prepared.seen(prepared.parts.validation)).mean()  # type: ignore[operator]
    assert history[-1]["validation"] == pytest.approx(held_out.item(), abs=1e-5)


def test_pictures_are_those_that_make_sense(mixture, linear):
    assert files(mixture[0]) == ALWAYS | {"components.png", "confusion.png", "responsibilities.png"}
    assert files(linear[0]) == ALWAYS | CODES | {"loadings.png", "scree.png"}


def test_the_table_is_exact_and_counts_what_is_used(mixture):
    folder, called = mixture
    *_, last = called.out.splitlines()
    assert re.fullmatch(r"components in use 2 of 2, fitted in \d+\.\d seconds", last)
    found = rows(folder)["gaussian_mixture"]
    assert found["elbo"] == pytest.approx(found["log_p"], abs=1e-4)
    assert json.loads((folder / "report.json").read_text())["how"] == "exact"


def test_probabilistic_pca_stands_beside_its_closed_form(linear):
    folder, called = linear
    assert called.status == 0, called.err
    found = rows(folder)
    assert found["ppca"]["log_p"] == pytest.approx(found["closed form"]["log_p"], abs=1e-4)
    assert found["ppca"]["elbo"] == pytest.approx(found["ppca"]["log_p"], abs=1e-4)
    assert called.out.splitlines()[-1].startswith("active units 2 of 2")


def test_the_closed_form_is_not_the_pair_itself(linear):
    config = RunFolder(linear[0]).config()
    prepared = prepare(config.source, config.seed)
    pair = fitted.read(RunFolder(linear[0]), config, prepared, torch.device("cpu"))
    before = {name: value.clone() for name, value in pair.model.state_dict().items()}
    with torch.no_grad():
        pair.model.get_parameter("mean").add_(10.0)
    (row,) = _closed_form(pair, prepared)
    assert row.mean == pytest.approx(rows(linear[0])["closed form"]["log_p"])
    assert not torch.equal(pair.model.mean, before["mean"])  # type: ignore[arg-type]


@pytest.mark.parametrize("which", ["mixture", "linear"])
def test_evaluate_sample_and_resume_find_the_fit(which, request, tmp_path):
    folder, called = request.getfixturevalue(which)
    again = call("evaluate", folder)
    assert (again.status, again.out) == (0, called.out)
    path = tmp_path / "x.npy"
    assert call("sample", folder, "--n", 9, "--out", path).status == 0
    drawn = np.load(path)
    assert drawn.shape == (9, 4 if which == "mixture" else 13)
    assert np.isfinite(drawn).all()
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    kept = files(copy)
    (copy / "report.json").unlink()
    resumed = call("fit", "--resume", copy, "--quiet")
    assert (resumed.status, without_time(resumed.out)) == (0, without_time(called.out))
    assert files(copy) == kept
    assert final_tensors(copy) == final_tensors(folder)


def test_more_epochs_go_on_from_the_parameters(short, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(short[0], folder)
    assert call("fit", "--resume", folder, "--epochs", 6, "--quiet").status == 0
    before, after = (json.loads((p / "history.json").read_text()) for p in (short[0], folder))
    assert [epoch["step"] for epoch in after] == [1, 2, 3, 4, 5, 6]
    assert [e["elbo"] for e in after[:3]] == [e["elbo"] for e in before]
    assert after[3]["elbo"] > before[2]["elbo"]
    # Epoch 4 is one M-step from where the fit stood after epoch 3.
    config = RunFolder(short[0]).config()
    prepared = prepare(config.source, config.seed)
    pair = fitted.read(RunFolder(short[0]), config, prepared, torch.device("cpu"))
    x = prepared.seen(prepared.parts.train)
    assert em(pair.model, x, epochs=1, progress=False).elbo == after[3]["elbo"]


def test_a_run_without_a_checkpoint_starts_anew(short, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(short[0], folder)
    shutil.rmtree(folder / "checkpoint")
    assert call("fit", "--resume", folder, "--quiet").status == 0
    assert final_tensors(folder) == final_tensors(short[0])


def test_a_checkpoint_of_another_pair_is_named(mixture, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(mixture[0], folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_components": 3}))
    called = call("evaluate", folder)
    assert called.status == 2
    assert "is of another pair" in called.err
    assert called.err.count("\n") == 1


def test_components_are_in_the_posterior_file(mixture):
    draws = arviz.from_netcdf(mixture[0] / "posterior.nc")
    component = draws["posterior"]["component"]
    assert component.dims == ("chain", "draw", "data")
    assert set(np.unique(component.values)) <= {0, 1}


def test_a_pair_without_latents_has_a_table_and_samples(tmp_path):
    called = fit("gaussian", tmp_path / "run", "--data", "iris")
    assert called.status == 0, called.err
    assert files(tmp_path / "run") == ALWAYS
    found = rows(tmp_path / "run")
    assert found["gaussian"]["log_p"] == pytest.approx(
        found["full-covariance normal"]["log_p"], abs=1e-3
    )
    assert re.fullmatch(r"fitted in \d+\.\d seconds", called.out.splitlines()[-1])


def test_a_guide_that_must_be_learned_is_not_left_behind():
    x = torch.randn(30, 4)
    assert exact.suits(pairs.build("gaussian_mixture", x))
    assert exact.suits(pairs.build("factor_analysis", x, latent_dim=1))
    assert not exact.suits(pairs.build("vae", x))
    learned = pairs.build("gaussian_mixture", x, guide=AmortizedCategorical(4, 3))
    assert not exact.suits(learned)
    assert exact.suits(pairs.build("ppca", x, guide=LinearGaussian(4, 2)))


def test_relevance_finds_the_dimension_of_what_was_simulated():
    generator = torch.Generator().manual_seed(0)
    z, w = torch.randn(500, 3, generator=generator), torch.randn(3, 12, generator=generator)
    x = z @ w + 0.3 * torch.randn(500, 12, generator=generator)
    found = relevance(x)
    assert found is not None
    assert found.num_active == 3
    assert found.precision[3] > 30 * found.precision[2]
    assert relevance(x[:, :1]) is None
    assert relevance(torch.where(x > 2, torch.nan, x)) is None


def test_starts_that_are_all_the_same_are_made_once():
    (x,) = as_tensors(torch.randn(50, 4), torch.float32) or ()
    assert exact._starts(pairs.build("gaussian_mixture", x).model, x) == 10
    assert exact._starts(pairs.build("ppca", x).model, x) == 1
    assert exact._starts(pairs.build("gaussian", x).model, x) is None
    assert exact._starts(nn.Linear(1, 1), x) is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("fit", "vae", "--num-components", "3"), "has no number of components"),
        (("fit", "gaussian_mixture", "--latent-dim", "3"), "has no latent dimension"),
        (("fit", "gaussian_mixture", "--num-components", "0"), "--num-components 0"),
        (("fit", "gaussian_mixture", "--num-components", "500"), "fewer components"),
        (("fit", "ppca", "--data", "iris", "--latent-dim", "4"), "not below data_dim=4"),
        (("fit", "regression"), "fit it from Python"),
        (("fit", "gausian"), "did you mean 'gaussian'?"),
    ],
)
def test_a_wrong_argument_gets_one_line(arguments, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    called = call(*arguments)
    assert called.status == 2
    assert says in called.err
    assert called.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Called]:
    folder = tmp_path_factory.mktemp("runs") / "process"
    return folder, fit("dirichlet_process_mixture", folder, "--num-components", 6)


@pytest.mark.slow
def test_a_posterior_over_parameters_is_fitted_in_closed_form_too(process):
    folder, called = process
    assert called.status == 0, called.err
    made = {"clusters.png", "components.png", "confusion.png", "responsibilities.png"}
    assert files(folder) == ALWAYS | made
    report = json.loads((folder / "report.json").read_text())
    assert "draws of the parameters' posterior" in report["how"]
    assert re.fullmatch(r"components in use [2-5] of 6, .*", called.out.splitlines()[-1])
    # The model knows its own predictive density.
    config = RunFolder(folder).config()
    prepared = prepare(config.source, config.seed)
    pair = fitted.read(RunFolder(folder), config, prepared, torch.device("cpu"))
    log_prob = pair.model.log_prob(prepared.seen(prepared.parts.test))  # type: ignore[operator]
    (row, *_) = report["rows"]
    assert row["log_p"] == pytest.approx(log_prob.mean().item(), abs=0.05)
    assert row["elbo"] < row["log_p"]
    assert call("evaluate", folder).out == called.out


@pytest.mark.slow
def test_new_data_come_from_the_posterior_over_parameters(process, tmp_path):
    path = tmp_path / "x.npy"
    assert call("sample", process[0], "--n", 2000, "--out", path).status == 0
    drawn = np.load(path)
    data = prepare(RunFolder(process[0]).config().source, 0).parts.train.x.numpy()
    # From the prior they would be spread over a hundred times the variance.
    np.testing.assert_allclose(drawn.mean(0), data.mean(0), atol=0.3 * data.std(0).max())
    np.testing.assert_allclose(drawn.std(0), data.std(0), rtol=0.35)

"""The folder of a run, and what a person asked for."""

import dataclasses
import json
import os
import resource

import pytest

from pyro_models.cli import exact, runs
from pyro_models.cli.catalogue import Source
from pyro_models.cli.recipe import prepare
from pyro_models.cli.request import Request
from pyro_models.cli.runs import Config, RunFolder
from pyro_models.errors import CheckpointError, OptionError

CONFIG = Config(
    pair="vae",
    source=Source("digits", image_shape=(1, 8, 8)),
    epochs=10,
    batch_size=64,
    every=1,
    latent_dim=16,
    seed=0,
    device="cpu",
)


def test_a_config_is_read_back(tmp_path):
    folder = runs.create(tmp_path / "run", CONFIG)
    assert folder.config() == CONFIG
    assert not folder.has_checkpoint


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.pop("epochs"),
        lambda record: record.update(surprise=1),
        lambda record: record.update(format=99),
        lambda record: record["source"].update(surprise=1),
        lambda record: record.update(source=3),
        lambda record: record["source"].update(image_shape=[8]),
    ],
)
def test_a_config_that_is_not_a_runs_is_refused(tmp_path, change):
    record = json.loads(json.dumps(CONFIG.as_json()))
    change(record)
    (tmp_path / "config.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match="damaged"):
        RunFolder(tmp_path).config()


def test_default_folders_have_names_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second = (runs.create(None, CONFIG).path for _ in range(2))
    assert first != second
    assert first.parent == runs.PARENT
    assert first.name.startswith("vae-")


def test_an_empty_folder_may_be_written_into(tmp_path):
    assert runs.create(tmp_path, CONFIG).config() == CONFIG


def test_files_are_whole_or_not_there(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    folder.write("a", b"old")

    def fails(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(CheckpointError, match=r"No space left on device; make room.*--resume"):
        folder.write("a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_reserving_more_than_there_is_fails_and_leaves_nothing(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        RunFolder(tmp_path).reserve("x", 5_000)
        with pytest.raises(CheckpointError, match="cannot write"):
            RunFolder(tmp_path).reserve("x", 50_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_defaults_suit_the_data():
    request = Request()
    config = request.config(request.source, prepare(request.source, 0))
    assert (config.pair, config.source.name, config.latent_dim) == ("vae", "digits", 16)
    assert (config.batch_size, config.seed, config.device) == (64, 0, "cpu")
    assert 5000 <= config.epochs * 23 < 5100
    small = Request(data="iris")
    assert small.config(small.source, prepare(small.source, 0)).latent_dim == 2


@pytest.mark.parametrize(
    ("pair", "data", "latent_dim", "num_components"),
    [
        ("vae", "digits", 16, None),
        ("ppca", "digits", 16, None),
        ("factor_analysis", "wine", 3, None),
        ("gaussian_mixture", "iris", None, 3),
        ("gaussian", "wine", None, None),
    ],
)
def test_each_pair_has_data_and_sizes_that_show_it(pair, data, latent_dim, num_components):
    request = Request(pair=pair)
    config = request.config(request.source, prepare(request.source, 0))
    assert config.source.name == data
    assert (config.latent_dim, config.num_components) == (latent_dim, num_components)
    is_exact = pair != "vae"
    assert (config.epochs == exact.EPOCHS) == is_exact


def test_a_config_from_before_mixtures_is_read(tmp_path):
    record = CONFIG.as_json()
    del record["num_components"]
    (tmp_path / "config.json").write_text(json.dumps(record))
    assert RunFolder(tmp_path).config() == CONFIG


def test_given_options_are_kept():
    request = Request(data="iris", epochs=7, batch_size=5, latent_dim=3, seed=4)
    config = request.config(request.source, prepare(request.source, 4))
    given = {"epochs": 7, "batch_size": 5, "latent_dim": 3, "seed": 4}
    assert {name: getattr(config, name) for name in given} == given


def test_a_run_may_be_resumed_as_it_was_begun(tmp_path):
    source = Request(data="iris").source
    config = dataclasses.replace(CONFIG, source=source)
    folder = runs.create(tmp_path / "run", config)
    assert Request().resumed(folder) == config
    same = Request(pair="vae", data="iris", epochs=10, batch_size=64, latent_dim=16, seed=0)
    assert same.resumed(folder) == config
    assert Request(epochs=12).resumed(folder) == dataclasses.replace(config, epochs=12)
    with pytest.raises(OptionError, match="--batch-size 64, not 32"):
        Request(batch_size=32).resumed(folder)

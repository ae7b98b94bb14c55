"""The command as a person meets it: what it prints, what it writes, what it says when wrong."""

import contextlib
import importlib.metadata
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from typer.testing import CliRunner

from pyro_models import pairs
from pyro_models.cli import app, catalogue, main
from pyro_models.infer import checkpoint

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import arviz

FILES = {
    "checkpoint",
    "config.json",
    "history.json",
    "latent.png",
    "loss.png",
    "posterior.nc",
    "reconstructions.png",
    "report.json",
    "samples.png",
    "traversal.png",
}
COMMAND = (sys.executable, "-m", "pyro_models")
# As many as conftest gives to the process of the tests: sums must have the same order.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "2"}


class Called(NamedTuple):
    status: int
    out: str
    err: str


def call(*arguments: object) -> Called:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([str(argument) for argument in arguments])
    return Called(status, out.getvalue(), err.getvalue())


def fit(out: Path, *arguments: object) -> Called:
    return call("fit", "vae", "--out", out, *arguments)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Called]:
    folder = tmp_path_factory.mktemp("runs") / "digits"
    return folder, fit(folder, "--epochs", 1)


@pytest.fixture(scope="module")
def iris(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Called]:
    folder = tmp_path_factory.mktemp("runs") / "iris"
    return folder, fit(folder, "--data", "iris", "--epochs", 3, "--seed", 1, "--quiet")


def table(text: str) -> dict[str, list[float]]:
    """Row -> its numbers, of the table that ends an output."""
    header, *rows, last = text.splitlines()
    assert re.fullmatch(r" +ELBO +log p\(x\) +vae better by", header)
    assert re.fullmatch(r"active units \d+ of \d+, fitted in \d+\.\d seconds", last)
    found = {}
    for row in rows:
        name, cells = re.fullmatch(r"(\S+(?: \S+)*) {2,}(.*)", row).groups()  # type: ignore[union-attr]
        found[name] = [float(number) for number in re.findall(r"-?\d+\.\d+", cells)]
    return found


def without_time(text: str) -> str:
    return re.sub(r"fitted in .*", "", text)


def final_tensors(folder: Path) -> bytes:
    newest = sorted((folder / "checkpoint").iterdir())[-1]
    return (newest / "tensors.safetensors").read_bytes()


def test_a_fit_leaves_every_file(digits):
    folder, called = digits
    assert called.status == 0, called.err
    assert {path.name for path in folder.iterdir()} == FILES
    for path in folder.glob("*.png"):
        assert path.read_bytes()[:4] == b"\x89PNG", path
        assert path.stat().st_size > 5000, path
    assert len(json.loads((folder / "history.json").read_text())) == 1
    assert checkpoint.read(folder / "checkpoint").record["position"]["epoch"] == 1


def test_the_last_thing_printed_is_the_table_and_its_numbers_agree(digits):
    folder, called = digits
    rows = table(called.out)
    assert set(rows) == {"vae", "full-covariance normal", "independent normal pixels"}
    elbo, log_p, error = rows["vae"]
    assert elbo < log_p
    assert 0 < error < 5
    for name in set(rows) - {"vae"}:
        baseline, _, margin, _ = rows[name]
        assert margin == pytest.approx(log_p - baseline, abs=0.011)
    written = json.loads((folder / "report.json").read_text())
    assert [row["name"] for row in written["rows"]] == list(rows)
    assert written["rows"][0]["log_p"] == pytest.approx(log_p, abs=0.006)


def test_progress_goes_to_stderr_and_says_what_the_numbers_are(digits):
    _, called = digits
    assert "epoch 1/1" in called.err
    assert "180 held-out data of digits; nats per datum, higher is better" in called.err


def test_the_posterior_is_read_back_by_arviz(digits):
    folder, _ = digits
    draws = arviz.from_netcdf(folder / "posterior.nc")
    assert draws["posterior"]["z"].dims == ("chain", "draw", "data", "z_dim")
    assert draws["posterior"]["z"].sizes["z_dim"] == 16
    assert "pixel_0_0" in draws["observed_data"]["x_dim"].values
    assert set(draws["observed_data"]["label"].values) <= set(range(10))


def test_evaluate_prints_the_same_table(digits):
    folder, called = digits
    again = call("evaluate", folder)
    assert (again.status, again.out) == (0, called.out)


def test_samples_are_in_the_units_of_the_data(digits, tmp_path):
    folder, _ = digits
    assert call("sample", folder, "--n", 7).out == f"7 samples in {folder / 'samples.npy'}\n"
    x = np.load(folder / "samples.npy")
    (folder / "samples.npy").unlink()
    assert x.shape == (7, 64)
    np.testing.assert_allclose(x * 16, np.round(x * 16))
    assert x.min() >= 0
    assert x.max() <= 1
    for seed, same in ((0, True), (1, False)):
        path = tmp_path / f"{seed}.csv"
        assert call("sample", folder, "-n", 7, "--out", path, "--seed", seed).status == 0
        read = np.loadtxt(path, delimiter=",", skiprows=1)
        assert np.allclose(read, x) == same
    assert path.read_text().startswith("pixel_0_0,pixel_0_1,")
    assert call("sample", folder, "--out", tmp_path / "x.png").status == 0
    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"


def test_quiet_prints_the_table_only(iris):
    folder, called = iris
    assert called.status == 0
    assert called.err == ""
    assert "full-covariance normal" in table(called.out)
    assert "independent normal features" in table(called.out)
    assert {path.name for path in folder.iterdir()} == FILES


def test_resuming_a_finished_run_makes_the_same_files(iris, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(iris[0], folder)
    for name in FILES - {"checkpoint", "config.json"}:
        (folder / name).unlink()
    again = call("fit", "--resume", folder, "--quiet")
    assert (again.status, without_time(again.out)) == (0, without_time(iris[1].out))
    assert {path.name for path in folder.iterdir()} == FILES
    assert final_tensors(folder) == final_tensors(iris[0])


def test_more_epochs_go_on_from_where_the_run_stopped(iris, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(iris[0], folder)
    assert call("fit", "vae", "--resume", folder, "--epochs", 5, "--quiet").status == 0
    before, after = (json.loads((path / "history.json").read_text()) for path in (iris[0], folder))
    assert len(after) == 5
    assert after[:3] == before


def test_a_file_with_labels_and_without_baselines(tmp_path):
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(40, 3))
    lines = [f"{a:.3f},1.0,{b:.3f},{'cat' if c > 0 else 'dog'}" for a, b, c in rows]
    path = tmp_path / "pets.csv"
    path.write_text("\n".join(["size,always,age,kind", *lines]))
    called = fit(tmp_path / "run", "--data", path, "--labels", "kind", "--epochs", 1)
    assert called.status == 0, called.err
    assert "no baselines: 1 of 3 dimensions are constant" in called.err
    assert called.out.count("\n") == 3


def test_binary_pictures_in_a_file_are_judged_by_probabilities(tmp_path):
    x = (np.random.default_rng(0).random((60, 12)) < 0.3).astype(np.uint8)
    np.savez(tmp_path / "pictures.npz", x=x, other=x)
    called = fit(
        tmp_path / "run",
        *("--data", tmp_path / "pictures.npz", "--key", "x", "--image-shape", "3x4"),
        *("--epochs", 1),
    )
    assert called.status == 0, called.err
    assert "log-probability of the zeros and ones" in called.err
    rows = [line.split("  ")[0] for line in called.out.splitlines()]
    assert "independent pixels" in rows
    assert "correlated pixels (Gaussian)" in rows


def test_counts_are_spread_over_their_cells(tmp_path):
    counts = np.random.default_rng(0).poisson(3.0, size=(60, 3))
    np.save(tmp_path / "counts.npy", counts)
    run = tmp_path / "run"
    called = fit(run, "--data", tmp_path / "counts.npy", "--epochs", 1)
    assert called.status == 0, called.err
    assert "log-density of the dequantised, standardised data" in called.err
    assert call("sample", run, "--out", tmp_path / "new.npy").status == 0
    drawn = np.load(tmp_path / "new.npy")
    np.testing.assert_array_equal(drawn, np.round(drawn))
    assert drawn.min() >= 0
    assert drawn.max() <= counts.max()


def test_list_names_every_pair_and_data_set():
    result = CliRunner().invoke(app, ["list"])
    assert result.exit_code == 0
    for name in (*pairs.names(), *catalogue.names(), ".csv"):
        assert name in result.output


@pytest.mark.parametrize("arguments", [(), ("--help",), ("fit", "--help"), ("sample", "--help")])
def test_help_is_at_hand(arguments):
    called = call(*arguments)
    assert called.status == 0
    assert called.out.startswith("Usage: ")
    assert all(len(line) <= 100 for line in called.out.splitlines())


def test_the_console_script_is_main():
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="pyro-models")
    assert script.load() is main


WRONG = [
    (("fit", "vea"), "did you mean 'vae'?"),
    (("fit", "vae", "--data", "digit"), "did you mean 'digits'?"),
    (("fit", "vae", "--data", "gone.csv"), "there is no file gone.csv"),
    (("fit", "vae", "--data", "x.parquet"), ".npy, .npz, .csv"),
    (("fit", "vae", "--data", "mnist", "--root", "gone"), "--download"),
    (("fit", "vae", "--data", "iris", "--labels", "a"), "--labels is for files"),
    (("fit", "vae", "--device", "gpu"), "--device"),
    (("fit", "vae", "--device", "cuda:99"), "try 'cpu'"),
    (("fit", "vae", "--epochs", "0"), "--epochs 0: give a whole number of at least 1"),
    (("fit", "vae", "--epochs", "many"), "see pyro-models fit --help"),
    (("fit", "vae", "--batch-size", "0"), "--batch-size 0"),
    (("fit", "vae", "--latent-dim", "-2"), "--latent-dim -2"),
    (("fit", "vae", "--seed", "-1"), "--seed -1"),
    (("fit", "vae", "--image-shape", "5"), "HEIGHTxWIDTH"),
    (("fit", "vae", "--epoch", "5"), "--epochs"),
    (("fit", "vae", "--out", "full"), "full is not empty"),
    (("fit", "vae", "--out", "file/run"), "cannot be made"),
    (("fit", "vae", "--out", "file"), "cannot be made"),
    (("fit", "vae", "--out", "new", "--resume", "full"), "--out is for a new run"),
    (("fit", "--resume", "gone"), "not the folder of a run"),
    (("fit", "--resume", "full"), "not the folder of a run"),
    (("fit", "vae", "--data", "ragged.csv"), "ragged"),
    (("fit", "vae", "--data", "words.csv"), "--labels"),
    (("fit", "vae", "--data", "two.csv"), "leaves the part"),
    (("evaluate",), "see pyro-models evaluate --help"),
    (("evaluate", "gone"), "not the folder of a run"),
    (("evaluate", "torn"), "torn/config.json is damaged"),
    (("sample", "gone"), "not the folder of a run"),
    (("sample", "full", "--n", "0"), "--n 0"),
    (("sample", "full", "--out", "x.jpg"), ".npy, .csv, .png"),
    (("frobnicate",), "see pyro-models --help"),
    (("fit", "vae", "extra"), "see pyro-models fit --help"),
]


@pytest.fixture
def clutter(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("full").mkdir()
    Path("full/thing").write_text("")
    Path("file").write_text("")
    Path("torn").mkdir()
    Path("torn/config.json").write_text('{"format": 1, "pair"')
    Path("ragged.csv").write_text("1,2\n3\n")
    Path("words.csv").write_text("a,b\n1,x\n")
    Path("two.csv").write_text("1,2\n3,4\n")
    return sorted(tmp_path.rglob("*"))


@pytest.mark.parametrize(("arguments", "says"), WRONG, ids=[" ".join(a) for a, _ in WRONG])
def test_a_wrong_argument_gets_one_line_that_says_what_to_do(clutter, arguments, says):
    called = call(*arguments)
    assert called.status == 2
    assert called.out == ""
    assert called.err.startswith("error: ")
    assert called.err.count("\n") == 1
    assert says in called.err
    assert sorted(Path.cwd().rglob("*")) == clutter


def test_a_resumed_run_keeps_what_it_was_begun_with(iris):
    for option in (("--seed", 2), ("--data", "wine"), ("--latent-dim", 3), ("--epochs", 2)):
        called = call("fit", "--resume", iris[0], *option)
        assert called.status == 2
        assert f"was begun with {option[0]}" in called.err


def test_damage_is_named(iris, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(iris[0], folder)
    newest = sorted((folder / "checkpoint").iterdir())[-1] / "tensors.safetensors"
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
    for arguments in (("evaluate", folder), ("sample", folder), ("fit", "--resume", folder)):
        called = call(*arguments)
        assert called.status == 2
        assert "is damaged" in called.err.splitlines()[-1]
    shutil.rmtree(folder / "checkpoint")
    assert "has no checkpoint yet" in call("evaluate", folder).err
    assert call("fit", "--resume", folder, "--quiet").status == 0
    assert final_tensors(folder) == final_tensors(iris[0])


def start(out: Path, epochs: int) -> subprocess.Popen[str]:
    """A fit of its own process, brought as far as its third checkpoint."""
    process = subprocess.Popen(
        [*COMMAND, "fit", "vae", "--data", "iris", "--epochs", str(epochs), "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    deadline = time.monotonic() + 120
    while not (out / "checkpoint").is_dir() or len(list((out / "checkpoint").iterdir())) < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


def test_ctrl_c_keeps_the_fit_so_far(tmp_path):
    folder = tmp_path / "run"
    process = start(folder, epochs=4900)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert "Traceback" not in err
    assert err.splitlines()[-1] == (
        f"interrupted; the fit so far is saved: continue with pyro-models fit --resume {folder}"
    )
    assert call("evaluate", folder).status == 0


@pytest.mark.slow
def test_a_killed_fit_resumed_ends_as_if_nothing_had_happened(tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = start(killed, epochs=150)
    process.kill()
    process.communicate()
    assert not (killed / "report.json").exists()
    resumed = call("fit", "--resume", killed, "--quiet")
    assert resumed.status == 0, resumed.err
    called = fit(whole, "--data", "iris", "--epochs", 150, "--quiet")
    assert without_time(resumed.out) == without_time(called.out)
    assert final_tensors(killed) == final_tensors(whole)
    assert {path.name for path in killed.iterdir()} == FILES


def test_a_full_disk_is_one_line(tmp_path):
    # Not preexec_fn: it forks, of which JAX complains if another test has loaded it.
    almost_no_room = 'ulimit -f 20; exec "$@"'
    fit_iris = ["fit", "vae", "--data", "iris", "--epochs", "1", "--out", str(tmp_path / "run")]
    done = subprocess.run(
        ["bash", "-c", almost_no_room, "bash", *COMMAND, *fit_iris],
        capture_output=True,
        text=True,
        check=False,
        env=ENVIRONMENT,
    )
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: cannot write a checkpoint")
    assert "Traceback" not in done.stderr

"""The commands, their options, and how errors are shown: one line that says what to do."""

import inspect
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from pyro_models import pairs
from pyro_models.cli import catalogue, fitted, job, runs
from pyro_models.cli.job import Tell
from pyro_models.cli.recipe import prepare
from pyro_models.cli.report import Report
from pyro_models.cli.request import Request, at_least, check_device
from pyro_models.cli.runs import RunFolder
from pyro_models.errors import OptionError, PyroModelsError
from pyro_models.infer.preparation import resolve_device

NAME = "pyro-models"
WRONG, INTERRUPTED = 2, 130
# The parent of typer's own errors, wherever the installed version of typer keeps it.
_TyperError: type[Any] = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name=NAME,
    help="Latent variable models for Pyro: fit one to data, judge it, draw from it.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")]
DeviceOption = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1.")]


@app.command("fit", short_help="Fit a pair to data, and show how good it is.")
def fit_command(
    pair: Annotated[
        str | None,
        typer.Argument(
            help="Name of a pair, see pyro-models list. [default: vae]", show_default=False
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Name (see pyro-models list), or a .npy, .npz or .csv file. [default: digits; "
            "iris for mixtures, wine for gaussian and factor_analysis]",
            show_default=False,
        ),
    ] = None,
    root: Annotated[
        str | None,
        typer.Option(help="Folder of torchvision's data sets. [default: data]", show_default=False),
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch a torchvision data set that is not there.")
    ] = False,
    labels: Annotated[
        str | None,
        typer.Option(help="Column of a .csv (name, or place from 0) or array of an .npz: labels."),
    ] = None,
    key: Annotated[str | None, typer.Option(help="Array of an .npz that holds the data.")] = None,
    image_shape: Annotated[
        str | None,
        typer.Option(help="Rows of a file are pictures: HEIGHTxWIDTH or CHANNELSxHEIGHTxWIDTH."),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            help="Passes through the data. [default: as many as make 5000 steps; at most 1000 "
            "where E- and M-steps are exact]",
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            help="Data in a minibatch. [default: 64; 128 from 10,000 data]", show_default=False
        ),
    ] = None,
    latent_dim: Annotated[
        int | None,
        typer.Option(
            help="Dimension of the latent space. [default: a quarter of the data's, 2 to 32]",
            show_default=False,
        ),
    ] = None,
    num_components: Annotated[
        int | None,
        typer.Option(
            help="Components of a mixture, or the most of them. [default: 3, or 20]",
            show_default=False,
        ),
    ] = None,
    labelled: Annotated[
        float | None,
        typer.Option(
            help="Share of the known labels that a semi-supervised pair sees. [default: 0.1; all "
            "of a file's, where -1 says unknown]",
            show_default=False,
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="Where to fit: cpu, cuda, cuda:1. [default: cpu]", show_default=False),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of all randomness. [default: 0]", show_default=False)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder to write into. [default: runs/<pair>-<time>]", show_default=False
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Continue the run in this folder as it was begun; only --epochs may be raised.",
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but the table.")] = False,
) -> int:
    """Fit a pair to data, and show how good it is beside two simple models.

    Writes config, checkpoints, history, posterior draws and pictures into a folder.
    """
    request = Request(
        pair=pair,
        data=data,
        root=root,
        download=download or None,
        labels=labels,
        key=key,
        image_shape=image_shape,
        epochs=epochs,
        batch_size=batch_size,
        latent_dim=latent_dim,
        num_components=num_components,
        labelled=labelled,
        device=device,
        seed=seed,
    )
    return _fit(request, out, resume, tell=_silent if quiet else _tell)


@app.command("list")
def list_command() -> int:
    """Name the pairs and the data sets."""
    typer.echo("Pairs (pyro-models fit PAIR)")
    _columns({name: _about(name) for name in pairs.names()})
    typer.echo("\nData sets (--data NAME)")
    _columns(catalogue.names() | {"FILE": f"your own data: {', '.join(catalogue.FILE_KINDS)}"})
    return 0


@app.command("evaluate")
def evaluate_command(run: RunArgument, device: DeviceOption = "cpu") -> int:
    """Make the table of a run anew from its checkpoint."""
    check_device(device)
    folder = RunFolder(run)
    config = folder.config()
    prepared = prepare(config.source, config.seed, config.labelled)
    _show(job.evaluate(config, folder, prepared, resolve_device(device)), _tell)
    return 0


@app.command("sample")
def sample_command(
    run: RunArgument,
    n: Annotated[int, typer.Option("--n", "-n", help="How many data to draw.")] = 64,
    out: Annotated[
        Path | None,
        typer.Option(
            help="File to write: .npy, .csv, or .png for a picture. [default: RUN/samples.npy]",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    device: DeviceOption = "cpu",
) -> int:
    """Draw new data from the model of a run."""
    at_least("--n", n, 1)
    at_least("--seed", seed, 0)
    check_device(device)
    folder = RunFolder(run)
    path = folder.path / "samples.npy" if out is None else out
    if path.suffix not in job.SAMPLE_KINDS:
        raise OptionError(
            f"--out {path}: give a file with the suffix {', '.join(job.SAMPLE_KINDS)}"
        )
    config = folder.config()
    prepared = prepare(config.source, config.seed, config.labelled)
    x = job.draw(config, folder, prepared, resolve_device(device), n, seed)
    job.save_samples(x, path, prepared)
    typer.echo(f"{n} samples in {path}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, and show any error a person can cause as one line.

    Args:
        arguments: What was typed after the command's name; by default the process's own.

    Returns:
        The exit status: 0, 2 if something was wrong, 130 after Ctrl-C.

    Example:
        >>> main(["sample", "no-such-run", "--n", "0"])
        2
    """
    typed = list(sys.argv[1:] if arguments is None else arguments)
    with _plain_warnings():
        try:
            return app(typed or ["--help"], prog_name=NAME, standalone_mode=False) or 0
        except _TyperError as error:
            return _fail(f"{error.format_message().rstrip('.')}; see {_command(error)} --help")
        except PyroModelsError as error:
            return _fail(str(error))
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            return _fail(f"{where}{error.strerror or error}; see to it and try again")
        except (typer.Abort, KeyboardInterrupt):
            return INTERRUPTED


def _fit(request: Request, out: Path | None, resume: Path | None, tell: Tell) -> int:
    """Begin a run or go on with one, and bring it to its end."""
    if resume is None:
        source = request.source
        prepared = prepare(source, request.chosen_seed, request.chosen_share)
        config = request.config(source, prepared)
        fitted.make(config, prepared)  # so that nothing is written if it cannot be made
        folder = runs.create(out, config)
    elif out is not None:
        raise OptionError("--out is for a new run, and --resume goes on in RUN; leave --out away")
    else:
        folder = RunFolder(resume)
        config = request.resumed(folder)
        prepared = prepare(config.source, config.seed, config.labelled)
    device = resolve_device(config.device)
    try:
        tell(f"fitting {config.pair} to {prepared.parts.train.name}; writing to {folder.path}")
        result = job.train(config, folder, prepared, device, progress=tell is not _silent)
        if job.interrupted(result):
            return _interrupted(folder)
        report = job.finish(config, folder, prepared, device, tell)
    except KeyboardInterrupt:
        return _interrupted(folder)
    _show(report, tell)
    return 0


def _interrupted(folder: RunFolder) -> int:
    saved = "the fit so far is saved" if folder.has_checkpoint else "nothing is fitted yet"
    typer.echo(
        f"interrupted; {saved}: continue with pyro-models fit --resume {folder.path}", err=True
    )
    return INTERRUPTED


def _show(report: Report, tell: Tell) -> None:
    for note in report.notes():
        tell(note)
    typer.echo(report.table())


def _tell(line: str) -> None:
    typer.echo(line, err=True)


def _silent(line: str) -> None:
    """Nothing."""


def _about(pair: str) -> str:
    """What a pair is, from the first line of its function's docstring."""
    return (inspect.getdoc(getattr(pairs, pair)) or "").partition("\n")[0]


def _columns(rows: dict[str, str]) -> None:
    width = max(map(len, rows))
    for name, about in rows.items():
        typer.echo(f"  {name:<{width}}   {about}")


def _fail(message: str) -> int:
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    return WRONG


def _command(error: Any) -> str:
    """The command that typer found fault with."""
    context = getattr(error, "ctx", None)
    return NAME if context is None else context.command_path


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show what the library warns of as one line, and no one else's warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = lambda message, *_, **__: _tell(f"warning: {message}")
        yield

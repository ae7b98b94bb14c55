"""What a person typed after ``fit``: checked, and completed with defaults."""

import dataclasses
import math
import re
from dataclasses import dataclass
from pathlib import Path

from pyro_models.cli import catalogue, defaults, exact, fitted
from pyro_models.cli.catalogue import Source
from pyro_models.cli.defaults import DEVICE, PAIR, ROOT, SEED
from pyro_models.cli.recipe import Prepared
from pyro_models.cli.runs import Config, RunFolder
from pyro_models.errors import OptionError
from pyro_models.infer.preparation import resolve_device

# By default a fit takes about so many steps, and looks at the held-out data so often.
STEPS, LOOKS = 5000, 50
LARGE = 10_000
_WORDS = {"latent_dim": "latent dimension", "num_components": "number of components"}


@dataclass(frozen=True)
class Request:
    """The options of ``fit`` as they were given; None for those that were not.

    Raises:
        OptionError: If one of them has no meaning.

    Example:
        >>> Request(epochs=0)
        Traceback (most recent call last):
            ...
        pyro_models.errors.OptionError: --epochs 0: give a whole number of at least 1
    """

    pair: str | None = None
    data: str | None = None
    root: str | None = None
    download: bool | None = None
    labels: str | None = None
    key: str | None = None
    image_shape: str | None = None
    epochs: int | None = None
    batch_size: int | None = None
    latent_dim: int | None = None
    num_components: int | None = None
    labelled: float | None = None
    device: str | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "latent_dim", "num_components"):
            at_least(_flag(name), getattr(self, name), 1)
        at_least("--seed", self.seed, 0)
        if self.labelled is not None and not 0 < self.labelled <= 1:
            raise OptionError(f"--labelled {self.labelled}: give a share above 0, at most 1")
        if self.device is not None:
            check_device(self.device)

    @property
    def source(self) -> Source:
        """Where the data are.

        Raises:
            OptionError: If there are no such data, or no such pair to choose them for.
        """
        return catalogue.check(
            Source(
                name=self.data or defaults.of(self.pair or PAIR).data,
                root=str(Path(self.root or ROOT).expanduser().resolve()),
                download=bool(self.download),
                labels=self.labels,
                key=self.key,
                image_shape=None if self.image_shape is None else _shape(self.image_shape),
            )
        )

    @property
    def chosen_seed(self) -> int:
        """The seed, given or not."""
        return SEED if self.seed is None else self.seed

    @property
    def chosen_share(self) -> float | None:
        """The share of known labels that the pair learns from; None for one that sees none.

        Raises:
            OptionError: If one was given for a pair that sees none, or there is no such pair.
        """
        pair = self.pair or PAIR
        if not defaults.of(pair).labels:
            if self.labelled is not None:
                raise OptionError(f"the pair {pair!r} sees no labels; leave out --labelled")
            return None
        return self.labelled or (defaults.LABELLED if not self.source.is_file else 1.0)

    def config(self, source: Source, prepared: Prepared) -> Config:
        """A new run: what was given, and defaults that suit the data.

        Args:
            source: Where the data are.
            prepared: The data.

        Raises:
            OptionError: If there is no such pair, or it lacks an option.
        """
        pair = self.pair or PAIR
        chosen = self._sizes(pair, prepared.parts.train.data_dim)
        batch_size = self.batch_size or (64 if len(prepared.parts.train) < LARGE else 128)
        config = Config(
            pair=pair,
            source=source,
            epochs=1,
            batch_size=batch_size,
            every=1,
            seed=self.chosen_seed,
            device=self.device or DEVICE,
            labelled=self.chosen_share,
            **chosen,
        )
        epochs = self.epochs
        if epochs is None:
            is_exact = exact.suits(fitted.make(config, prepared))
            steps_an_epoch = math.ceil(len(prepared.parts.train) / batch_size)
            epochs = exact.EPOCHS if is_exact else max(20, math.ceil(STEPS / steps_an_epoch))
        return dataclasses.replace(config, epochs=epochs, every=max(1, epochs // LOOKS))

    def _sizes(self, pair: str, data_dim: int) -> dict[str, int | None]:
        """The sizes that the pair asks for, given or not; None for those it does not."""
        usual = {
            "latent_dim": defaults.latent_dim(pair, data_dim),
            "num_components": defaults.of(pair).num_components,
        }
        for name in usual:
            if getattr(self, name) is not None and not defaults.asks(pair, name):
                raise OptionError(
                    f"the pair {pair!r} has no {_WORDS[name]}; leave out {_flag(name)}"
                )
        return {
            name: (getattr(self, name) or value) if defaults.asks(pair, name) else None
            for name, value in usual.items()
        }

    def resumed(self, folder: RunFolder) -> Config:
        """The run in a folder, with more epochs if so asked.

        Raises:
            CheckpointError: If it is not the folder of a run.
            OptionError: If an option differs from what the run was begun with.
        """
        config = folder.config()
        begun = dataclasses.asdict(config) | dataclasses.asdict(config.source)
        begun["data"] = config.source.name
        given = {name: v for name, v in dataclasses.asdict(self).items() if v is not None}
        given |= {"data": self.source.name} if self.data is not None else {}
        given |= {"root": self.source.root} if self.root is not None else {}
        given |= {"image_shape": self.source.image_shape} if self.image_shape is not None else {}
        for name, value in given.items():
            if name != "epochs" and value != begun[name]:
                raise OptionError(
                    f"the run in {folder.path} was begun with {_flag(name)} {begun[name]}, not "
                    f"{value}; leave the option out, or start a new run without --resume"
                )
        epochs = self.epochs or config.epochs
        if epochs < config.epochs:
            raise OptionError(
                f"the run in {folder.path} was begun with --epochs {config.epochs}, more than "
                f"{epochs}; give as many or more, or leave the option out"
            )
        return dataclasses.replace(config, epochs=epochs)


def at_least(flag: str, value: int | None, least: int) -> None:
    """Refuse a number that is too small.

    Raises:
        OptionError: If it is.
    """
    if value is not None and value < least:
        raise OptionError(f"{flag} {value}: give a whole number of at least {least}")


def check_device(name: str) -> None:
    """Refuse a device that does not exist.

    Raises:
        OptionError: If it does not.
    """
    try:
        resolve_device(name)
    except OptionError as error:
        raise OptionError(f"--device: {error}") from error


def _flag(name: str) -> str:
    return name if name == "pair" else "--" + name.replace("_", "-")


def _shape(text: str) -> tuple[int, int, int]:
    """Channels, height and width.

    Example:
        >>> _shape("28x28"), _shape("3x32x32")
        ((1, 28, 28), (3, 32, 32))
    """
    match = re.fullmatch(r"(?:(\d+)x)?(\d+)x(\d+)", text.strip().lower())
    sizes = [int(size) for size in match.groups("1")] if match else []
    if 0 in sizes or not sizes or sizes[0] not in (1, 3):
        raise OptionError(
            f"--image-shape {text}: give HEIGHTxWIDTH, such as 28x28, or CHANNELSxHEIGHTxWIDTH "
            "with 1 or 3 channels"
        )
    channels, height, width = sizes
    return channels, height, width

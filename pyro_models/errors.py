"""The exceptions users meet. Each message says what was given, what was expected, what to do."""


class PyroModelsError(Exception):
    """Parent of every exception this library raises on purpose."""


class OptionError(PyroModelsError, ValueError):
    """An option has a value, or a combination of options, that cannot work."""


class DataError(PyroModelsError, ValueError):
    """Data is empty, non-finite, or of the wrong shape, type or device."""


class SupportError(DataError):
    """Data lies outside the support of the likelihood that is to explain it."""


class FileFormatError(DataError):
    """A data file is missing, unreadable, or of a kind that is not read here."""


class SiteMismatchError(PyroModelsError, ValueError):
    """The sample sites of model and guide do not fit together."""


class NonFiniteError(PyroModelsError, FloatingPointError):
    """A loss, gradient or parameter became NaN or infinite.

    Args:
        message: What happened and what to do.
        step: The optimisation step at which it happened, counted from 1, if known.
        sites: Names of the sample sites or parameters that were not finite.
    """

    def __init__(self, message: str, *, step: int | None = None, sites: tuple[str, ...] = ()):
        super().__init__(message)
        self.step = step
        self.sites = sites


class CheckpointError(PyroModelsError, RuntimeError):
    """A checkpoint is missing, damaged, or belongs to a different run."""

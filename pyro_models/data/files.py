"""Files: ``.npy`` and ``.npz`` (never a pickle), ``.csv`` with a header or without."""

import csv
import lzma
import struct
import tokenize
import zipfile
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pyro_models.data.arrays import as_labels
from pyro_models.data.record import Data, from_array
from pyro_models.errors import DataError, FileFormatError, OptionError

SUFFIXES = (".npy", ".npz", ".csv")

# What NumPy and the archive readers raise for damaged files: a header is parsed as Python's source,
# and its shape may ask for more memory than there is.
_NUMPY_ERRORS = (
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    SyntaxError,
    EOFError,
    OSError,
    RuntimeError,
    MemoryError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)


def load(
    path: str | Path,
    *,
    key: str | None = None,
    labels: str | int | None = None,
    header: bool | None = None,
    image_shape: tuple[int, ...] | None = None,
) -> Data:
    """Read a data set from a file.

    - ``.npy``: one array ``(N, ...)``. ``.npz``: several by name, of which ``key`` is the data
      (needless if there is but one, or one is called ``x``) and ``labels``, if given, the labels.
      Object arrays and pickles are never read, since reading them runs what they hold.
    - ``.csv``: rows of numbers between commas, a datum a row, the first row the names of the
      columns or not. ``labels`` is the name or the place (from 0, or from the end as -1) of the
      column with the labels, which may be text.

    Args:
        path: The file.
        key: Which array of an ``.npz`` is the data.
        labels: Which array or column holds the labels.
        header: Whether the first row of a ``.csv`` is names; ``None`` looks: a row without any
            number is names.
        image_shape: ``(channels, height, width)`` if a datum is a picture.

    Raises:
        FileFormatError: If the file is missing, of another kind, damaged, empty, ragged, not
            numeric, or holds NaN or infinity.
        OptionError: If an option does not fit the kind of file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "flowers.csv")
        ...     _ = path.write_text("length,width,species\\n5.1,3.5,setosa\\n7.0,3.2,versicolor\\n")
        ...     data = load(path, labels="species")
        >>> data.feature_names, data.label_names, data.labels
        (('length', 'width'), ('setosa', 'versicolor'), tensor([0, 1]))
    """
    path = Path(path).expanduser()
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise FileFormatError(
            f"{path} has the suffix {suffix!r}; those read here are {', '.join(SUFFIXES)}. "
            "Read others yourself and give the array to data.from_array"
        )
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise FileFormatError(f"{path} {what}; give the path of a data file")
    _check_options(suffix, key, labels, header)
    try:
        if suffix == ".csv":
            parts = _read_csv(path, labels, header)
        else:
            parts = _read_numpy(path, key, labels)
        return from_array(**parts, name=path.stem, image_shape=image_shape)
    except FileFormatError:
        raise
    except DataError as error:
        raise FileFormatError(f"{path}: {error}") from error


def _check_options(
    suffix: str, key: str | None, labels: str | int | None, header: bool | None
) -> None:
    if key is not None and suffix != ".npz":
        raise OptionError(f"key={key!r} names an array of an .npz file; leave it out for {suffix}")
    if header is not None and suffix != ".csv":
        raise OptionError(f"header={header} is about .csv files; leave it out for {suffix}")
    if labels is not None and suffix == ".npy":
        raise OptionError(
            f"labels={labels!r}: an .npy file holds one array, without labels; save both with "
            "numpy.savez, or give them to data.from_array"
        )
    if suffix == ".npz" and isinstance(labels, int):
        raise OptionError(f"labels={labels}: arrays of an .npz file go by name; give the name")


def _read_numpy(path: Path, key: str | None, labels: str | int | None) -> dict[str, Any]:
    try:
        with path.open("rb") as file:  # NumPy leaves the file open if it is no archive after all
            loaded = np.load(file, allow_pickle=False)
            if not isinstance(loaded, np.lib.npyio.NpzFile):
                return {"x": loaded}
            wanted = {"x": _key(path, loaded.files, key)}
            if labels is not None:
                wanted["labels"] = _label_key(path, loaded.files, str(labels))
            return {part: loaded[name] for part, name in wanted.items()}
    except FileFormatError:
        raise
    except _NUMPY_ERRORS as error:
        raise FileFormatError(
            f"{path} cannot be read as arrays of numbers: it is damaged, or holds objects, which "
            f"are never read because that runs what they hold ({error}); save it anew with "
            "numpy.save or numpy.savez from arrays of numbers"
        ) from error


def _key(path: Path, keys: list[str], key: str | None) -> str:
    if not keys:
        raise FileFormatError(f"{path} holds no arrays; save some with numpy.savez(path, x=...)")
    if key is not None and key not in keys:
        raise FileFormatError(f"{path} has no array {key!r}; it has {keys}")
    if key is not None:
        return key
    if "x" in keys:
        return "x"
    if len(keys) > 1:
        raise FileFormatError(f"{path} holds the arrays {keys}; say which with key=")
    return keys[0]


def _label_key(path: Path, keys: list[str], labels: str) -> str:
    if labels not in keys:
        raise FileFormatError(f"{path} has no array {labels!r} for the labels; it has {keys}")
    return labels


@dataclass
class _Table:
    """A table as it is read: numbers row by row, and the cells of the label column."""

    path: Path
    width: int
    names: tuple[str, ...] | None
    label: int | None
    numbers: array = field(default_factory=lambda: array("d"))
    cells: list[str] = field(default_factory=list)

    def column(self, place: int) -> str:
        """How a message calls a column."""
        return f"column {self.names[place]!r}" if self.names else f"column {place} (from 0)"

    def add(self, line: int, row: list[str]) -> None:
        """Take in one row, which stands in the given line of the file."""
        if len(row) != self.width:
            raise FileFormatError(
                f"{self.path} is ragged: line {line} has {len(row)} cells where the first has "
                f"{self.width}; give every row as many"
            )
        cells = [*row]
        if self.label is not None:
            self.cells.append(cells.pop(self.label).strip())
            if not self.cells[-1]:
                raise FileFormatError(f"{self.path}: the label in line {line} is missing")
        try:
            self.numbers.extend(map(float, cells))
        except ValueError as error:
            raise FileFormatError(f"{self.path}: {self._fault(line, row)}") from error

    def _fault(self, line: int, row: list[str]) -> str:
        for place, cell in enumerate(row):
            if place == self.label or _is_number(cell):
                continue
            where = f"{self.column(place)} in line {line}"
            if not cell.strip():
                return f"{where} is empty; fill in the value or drop the row"
            if len(row) == 1 and any(mark in cell for mark in ";\t"):
                return f"{where} is {cell!r}; put commas between the cells, and points in numbers"
            return (
                f"{where} is {cell!r}, which is not a number; drop the column, turn it into "
                "numbers, or, if it holds the labels, name it with labels="
            )
        return f"line {line} holds what is not a number"


def _read_csv(path: Path, labels: str | int | None, header: bool | None) -> dict[str, Any]:
    try:
        # The mark that spreadsheets put in front of UTF-8 is no part of the first name.
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = _read_table(path, _rows(file), labels, header)
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise FileFormatError(
            f"{path} is not text in UTF-8 with commas between cells ({error})"
        ) from error
    columns = table.width - (table.label is not None)
    if columns == 0:
        raise FileFormatError(f"{path} has no column but the labels; give at least one of data")
    parts: dict[str, Any] = {"x": np.frombuffer(table.numbers).reshape(-1, columns)}
    if table.names:
        names = [name for place, name in enumerate(table.names) if place != table.label]
        parts["feature_names"] = names
    if table.label is not None:
        numeric = all(map(_is_number, table.cells))
        parts["labels"] = [float(cell) for cell in table.cells] if numeric else table.cells
        parts["labels"], parts["label_names"] = as_labels(parts["labels"])
    return parts


def _rows(file: Any) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(file)
    for row in reader:
        if any(cell.strip() for cell in row):  # blank lines are not data
            yield reader.line_num, row


def _read_table(
    path: Path,
    rows: Iterator[tuple[int, list[str]]],
    labels: str | int | None,
    header: bool | None,
) -> _Table:
    line, first = next(rows, (0, []))
    if not first:
        raise FileFormatError(f"{path} is empty; give at least one row")
    is_header = _is_header(path, first) if header is None else header
    names = _names(path, first) if is_header else None
    table = _Table(path, len(first), names, _label_place(path, labels, names, len(first)))
    if not is_header:
        table.add(line, first)
    for line, row in rows:
        table.add(line, row)
    if not table.numbers and not table.cells:
        raise FileFormatError(f"{path} has names of columns but no rows; give at least one")
    return table


def _is_header(path: Path, row: list[str]) -> bool:
    cells = [cell.strip() for cell in row]
    if cells == [str(place) for place in range(len(cells))]:
        raise FileFormatError(
            f"{path} begins with the row {','.join(cells[:4])}{',...' if len(cells) > 4 else ''}, "
            "which may be names or data; say which with header=True or header=False"
        )
    return not any(map(_is_number, cells))


def _names(path: Path, row: list[str]) -> tuple[str, ...]:
    names = tuple(cell.strip() for cell in row)
    for place, name in enumerate(names):
        if not name:
            raise FileFormatError(
                f"{path}: column {place} (from 0) has no name; if it only numbers the rows, write "
                "the file without it (pandas: index=False), else name it"
            )
        if name in names[:place]:
            raise FileFormatError(f"{path} has two columns {name!r}; give each its own name")
    return names


def _label_place(
    path: Path, labels: str | int | None, names: tuple[str, ...] | None, width: int
) -> int | None:
    if labels is None:
        return None
    if isinstance(labels, str):
        if names is None:
            raise FileFormatError(
                f"{path} has no names of columns to find labels={labels!r} by; give the column's "
                "place from 0, or header=True if the first row is names"
            )
        if labels not in names:
            raise FileFormatError(f"{path} has no column {labels!r}; it has {list(names)}")
        return names.index(labels)
    if not -width <= labels < width:
        raise FileFormatError(f"{path} has {width} columns, so there is no column {labels}")
    return labels % width


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True

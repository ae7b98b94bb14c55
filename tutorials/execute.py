"""Run notebooks from top to bottom in this environment, each in a fresh kernel.

python tutorials/execute.py                      # all of them; say which fail
python tutorials/execute.py --write              # and keep their outputs in the files
python tutorials/execute.py --write tutorials/01_your_first_pair.ipynb
"""

import argparse
import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

HERE = Path(__file__).resolve().parent
SECONDS_A_CELL = 600


def execute(path: Path) -> nbformat.NotebookNode:
    """Run a notebook in its own folder's sight and return it with its outputs."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=SECONDS_A_CELL,
        resources={"metadata": {"path": str(HERE)}},
        record_timing=False,
    )
    client.execute()
    return notebook


def main() -> int:
    """Run what the command line names; the exit status counts the failures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all beside this file")
    parser.add_argument("--write", action="store_true", help="keep the outputs in the files")
    options = parser.parse_args()
    # The kernels inherit it. The models are too small for more threads, which only get into each
    # other's way on a busy machine; and sums in one order give the same outputs everywhere.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    failures = 0
    for path in options.notebooks or sorted(HERE.glob("*.ipynb")):
        start = time.perf_counter()
        try:
            notebook = execute(path)
        except CellExecutionError as error:
            failures += 1
            print(f"{path.name}: failed\n{error}", file=sys.stderr)
            continue
        print(f"{path.name}: {time.perf_counter() - start:.0f} s")
        if options.write:
            nbformat.write(notebook, path)
    return failures


if __name__ == "__main__":
    sys.exit(main())

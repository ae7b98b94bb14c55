"""The command ``pyro-models``: fit a pair to data, judge it, draw from it.

- `app`: the commands and their options, and how errors are shown.
- `catalogue`: data sets by name or file; `recipe`: how a pair sees them.
- `runs`: the folder of a run; `report`: its table; `pictures`: its pictures; `job`: the work.
"""

from pyro_models.cli.app import app, main

__all__ = ["app", "main"]

"""``python -m pyro_models`` is the command ``pyro-models``."""

import sys

from pyro_models.cli import main

if __name__ == "__main__":
    sys.exit(main())

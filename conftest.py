"""For every test, doctests included: types and shapes checked, the same start, no trace left.

It stands beside the packages, not under ``tests/``, because their doctests need it too.
"""

import signal
import threading
from collections.abc import Iterator
from typing import Any

import pyro
import pytest
import torch
from jaxtyping import config, install_import_hook

from tests import global_state
from tests.source import PACKAGES

# Types and shapes of calls inside the packages are checked at run time. As for mypy, an int
# will do where a float is asked for. This must come before the first import of the packages.
install_import_hook(PACKAGES, "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

# Seconds of a test in which they are. The checks double the time of a long one, whose calls are by
# then the same ones over and over.
CHECKED = 1.0

# The same sums in the same order on every machine; the cores are shared out between workers (-n).
THREADS = 1


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Check the calls of a test's first seconds, the making of its fixtures included."""
    timer = threading.Timer(CHECKED, config.update, ("jaxtyping_disable", True))
    timer.start()
    try:
        return (yield)
    finally:
        timer.cancel()
        timer.join()
        config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session", autouse=True)
def _threads() -> None:
    torch.set_num_threads(THREADS)


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c() -> None:
    """Ctrl-C works: what a shell runs in the background ignores it, as do all its children."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _clean_global_state(_threads: None) -> Iterator[None]:
    """Seed every generator, and fail a test that leaves global state changed."""
    pyro.set_rng_seed(0)
    before = global_state.settings()
    yield
    changed = global_state.changed(before, global_state.settings())
    if changed:
        _restore(before)
        pytest.fail(f"the test changed global state: {', '.join(changed)}")


def _restore(before: dict[str, Any]) -> None:
    """Put back what can be, so that only the guilty test fails."""
    pyro.clear_param_store()
    pyro.settings.set(**before["Pyro settings (validation among them)"])
    torch.set_default_dtype(before["torch default dtype"])
    torch.set_grad_enabled(before["torch grad mode"])
    torch.set_num_threads(before["torch threads"])

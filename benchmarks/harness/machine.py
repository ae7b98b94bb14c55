"""Facts about the machine, and the same few cores for everyone."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch._inductor.utils import fresh_inductor_cache

PACKAGES = ("torch", "pyro-ppl", "numpy", "jax", "jaxlib", "numpyro", "pyro-models")


def share_cores(threads: int) -> None:
    """Give torch and XLA the same ``threads`` cores.

    XLA sizes its thread pool by the cores the process may run on, so this comes before its
    first use.
    """
    if hasattr(os, "sched_setaffinity"):
        allowed = sorted(os.sched_getaffinity(0))[:threads]
        os.sched_setaffinity(0, allowed)
    torch.set_num_threads(threads)


@contextmanager
def cold_compiler() -> Iterator[None]:
    """Compile from nothing inside: no graph from before, no files of an earlier run."""
    torch.compiler.reset()
    with fresh_inductor_cache():
        yield
    torch.compiler.reset()


@contextmanager
def empty_caches() -> Iterator[None]:
    """Compilers of processes started inside find nothing but what one of these wrote.

    Not even the C++ headers that torch precompiles once for a machine, in its temporary folder.
    """
    names = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "TMPDIR")
    before = {name: os.environ[name] for name in names if name in os.environ}
    with TemporaryDirectory() as folder:
        os.environ |= dict.fromkeys(names, folder)
        try:
            yield
        finally:
            for name in names:
                del os.environ[name]
            os.environ |= before


def warm_up_compiler(device: torch.device) -> None:
    """Pay what the first compilation of any process costs: imports, workers, tool checks."""
    torch.compile(torch.sin)(torch.ones(8, device=device, requires_grad=True)).sum().backward()


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def facts(device: torch.device) -> dict[str, object]:
    """Processor, cores, threads, device, and versions, for a result file."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": _processor(),
        "cores_used": cores,
        "torch_threads": torch.get_num_threads(),
        "system": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in PACKAGES},
    }

"""``geomerge doctor``: versions, solvers, devices and data of an installation."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import torch

from geomerge.cli.console import working
from geomerge.cli.flags import Flags
from geomerge.cli.options import Json
from geomerge.data.sources import stored_names
from geomerge.expert_options import ExpertOptions
from geomerge.steps.qp import qp_solver

__all__ = ["doctor"]

_PACKAGES = (
    "torch", "torchvision", "numpy", "scipy", "scikit-learn", "safetensors", "clarabel", "qpth",
    "torch-pruning", "avalanche-lib", "matplotlib",
)  # fmt: skip
_OPTIONAL = ("transformers", "peft", "pyarrow", "ipywidgets")


def doctor(
    data: Annotated[ExpertOptions, Flags(only=("data_root",))],
    as_json: Json = False,
) -> None:
    """Show versions, solvers, devices and data, for bug reports."""
    with working("looking for versions, devices and data"):
        found = _examine(data.data_root)
    if as_json:
        print(json.dumps(found, indent=1))
        return
    for what, value in found.items():
        print(f"{what}: {', '.join(value) or 'none' if isinstance(value, list) else value}")


def _examine(data_root: str | None) -> dict[str, Any]:
    root = Path(data_root or os.environ.get("GEOMERGE_DATA") or "data")
    versions = {name: _version(name) for name in (*_PACKAGES, *_OPTIONAL)}
    solver = qp_solver()
    other = ", where it fails clarabel" if solver == "qpth" else "; qpth cannot be imported"
    return {
        "geomerge": _version("geomerge"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": f"{os.cpu_count()}, of which torch uses {torch.get_num_threads()}",
        "memory": _memory(),
        **{name: versions[name] for name in _PACKAGES},
        "optional packages": [f"{n} {v}" for n in _OPTIONAL if (v := versions[n]) != _MISSING],
        "quadratic programs": solver + other,
        "devices": _devices(),
        f"data in {root}": stored_names(root),
        "data in the package": ["digits", "digits-permuted"],
    }


_MISSING = "not installed"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return _MISSING


def _memory() -> str:
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):  # not available on every system
        return "unknown"
    return f"{size / 2**30:.1f} GiB"


def _devices() -> list[str]:
    found = ["cpu"]
    if torch.cuda.is_available():
        cards = range(torch.cuda.device_count())
        found += [f"cuda:{k} {torch.cuda.get_device_name(k)}" for k in cards]
    if torch.backends.mps.is_available():
        found.append("mps")
    return found

"""Certificates of merges: digests of all files and data, and the evidence of every claim."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from geomerge.certificate.evidence import merge_evidence
from geomerge.certificate.self_tests import merge_self_tests
from geomerge.data.task import SELECTION_SEED
from geomerge.errors import NumericalError
from geomerge.io.checkpoint import load_checkpoint
from geomerge.io.files import file_sha256, sha256
from geomerge.merging import MergeResult
from geomerge.report.content import EXAMPLES

__all__ = ["certificate", "environment", "report_digest"]

_FOLDERS = ("path", EXAMPLES)
_NOT_STATED = ("report.html", "report.json")  # these contain the certificate itself


def certificate(
    folder: Path, merged: MergeResult, sketches: Mapping[str, str], report: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the content of ``report.json`` under ``certificate``.

    Args:
        folder: Folder of the run, with all files except the report.
        merged: Result of the merge.
        sketches: Names of the sketches' files, by name of the network.
        report: Content of the report without the certificate.

    Raises:
        NumericalError: If a self-test fails.
    """
    device = merged.space.network.device
    identity = merge_self_tests(load_checkpoint(folder / "merged.safetensors"), merged)
    for statement, holds in identity.items():
        if not holds:
            raise NumericalError(
                f"expected to the bit that {statement}, and on {device} it is not "
                "so; look for what the network computes differently twice, or compute on the CPU"
            )
    evidence = merge_evidence(merged, report)
    content: dict[str, Any] = {
        "files": {name: file_sha256(folder / name) for name in _stored(folder)},
        "inputs": report["recipe"]["inputs"],
        "sketches": dict(sketches),
        "data": evidence.pop("data"),
        "recipe": report["recipe"],
        "seeds": _seeds(merged),
        "environment": environment(device),
        **evidence,
        "identity": identity,
    }
    return {**content, "report_sha256": report_digest({**report, "certificate": content})}


def report_digest(report: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a report without the certificate's ``report_sha256``."""
    rest = {k: v for k, v in report["certificate"].items() if k != "report_sha256"}
    # Not canonical_json: a report may contain numbers that are not finite.
    text = json.dumps({**report, "certificate": rest}, sort_keys=True, separators=(",", ":"))
    return sha256(text.encode())


def environment(device: torch.device) -> dict[str, Any]:
    """Return versions, platform, device and threads, on which rounding depends."""
    versions = {name: version(name) for name in ("geomerge", "torch", "numpy")}
    with suppress(PackageNotFoundError):  # qpth is not available for every Python
        versions["qpth"] = version("qpth")
    return {
        "python": platform.python_version(),
        **versions,
        "platform": platform.platform(),
        "device": str(device),
        "threads": torch.get_num_threads(),
    }


def _stored(folder: Path) -> list[str]:
    """Return the names of all files of a run except its report, relative to its folder."""
    files = [file for file in folder.iterdir() if file.name not in _NOT_STATED]
    for inside in _FOLDERS:
        files += (folder / inside).glob("*")
    return sorted(file.relative_to(folder).as_posix() for file in files if file.is_file())


def _seeds(merged: MergeResult) -> dict[str, Any]:
    return {
        "merge": merged.options.machine.seed,
        "selection": SELECTION_SEED,
        "training": {e.name: e.meta.get("training", {}).get("seed") for e in merged.space},
    }

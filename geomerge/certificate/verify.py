"""Verification of a finished merge by repeating every measurement of its certificate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from geomerge.certificate.certificate import environment
from geomerge.certificate.claims import Check, checks
from geomerge.certificate.stored_run import NotStoredError, StoredRun
from geomerge.errors import GeomergeError, OptionError, RunError, TaskError, first_line
from geomerge.io.files import parse_json
from geomerge.networks.network import check_device

__all__ = ["Claim", "Verification", "verify_run"]


@dataclass(frozen=True)
class Claim:
    """One claim of a certificate.

    Attributes:
        name: Subject of the claim.
        holds: Whether the claim holds; None if it could not be checked.
        detail: Reason why the claim fails or was not checked; empty if it holds.
    """

    name: str
    holds: bool | None
    detail: str = ""


@dataclass(frozen=True)
class Verification:
    """Result of verifying a run.

    Attributes:
        claims: All claims, in the order in which they were checked.
        notes: Differences from the run's environment: versions, device, threads.
    """

    claims: list[Claim]
    notes: list[str]

    @property
    def holds(self) -> bool:
        """Whether every claim that could be checked holds."""
        return all(claim.holds is not False for claim in self.claims)


def verify_run(
    folder: str | Path,
    *,
    networks: Mapping[str, Path] | None = None,
    arch: str | Callable[[], nn.Module] | None = None,
    data_root: str | None = None,
    download: bool = False,
    device: str = "cpu",
) -> Verification:
    """Check every claim of a merge's certificate by repeating its measurement.

    Args:
        folder: Folder of the run.
        networks: Paths of input files, by name of the network. Other files are searched in the
            current folder and in the two above the run's.
        arch: Architecture of the networks, if the run does not record it or the recorded factory
            cannot be imported.
        data_root: Folder of the named data sets.
        download: Whether torchvision may download data sets.
        device: Device for computations; exact counts are expected only on the run's own device.

    Raises:
        RunError: If the folder is not a run of ``geomerge merge`` or has no certificate.
        OptionError: If a network or the device is unknown.
    """
    check_device(device)
    try:
        content = (Path(folder) / "report.json").read_bytes()
    except OSError as error:
        raise RunError(
            f"{folder} holds no finished run ({(error.strerror or str(error)).lower()}); name the "
            "folder of one"
        ) from error
    try:
        report = parse_json(content)
        certified = isinstance(report["certificate"], dict)
    except KeyError as error:
        raise RunError(
            f"{folder} has a report without a certificate, of another command or of an older "
            "geomerge; merge again to have one"
        ) from error
    except (ValueError, TypeError) as error:
        return Verification([Claim("report.json", False, _unreadable(error))], [])
    if not certified:
        return Verification(
            [Claim("report.json", False, "its certificate is not a JSON object")], []
        )
    run = StoredRun(
        Path(folder), report, networks or {}, arch=arch,
        data_root=data_root, download=download, device=device,
    )  # fmt: skip
    for name, file in (networks or {}).items():
        if name not in _known(report):
            raise OptionError(
                f"`networks` names network {name!r}, and the run's are "
                f"{', '.join(_known(report))}; name one of them"
            )
        if not file.is_file():
            raise OptionError(f"no file {file}, said to be network {name}; check the name")
    claims = [_claim(name, check, run) for name, check in checks(run)]
    return Verification(claims, _notes(run, environment(torch.device(device))))


def _known(report: Mapping[str, Any]) -> list[str]:
    inputs = report["certificate"].get("inputs")
    return list(inputs) if isinstance(inputs, dict) else []


def _claim(name: str, check: Check, run: StoredRun) -> Claim:
    intact = not run.report_changed and not run.files_changed
    try:
        wrong = check()
    except NotStoredError as error:
        return Claim(name, None, str(error))
    except TaskError as error:  # reported once, by the claim on the data
        said = str(error) if name.startswith("data of") else "its data are not available"
        return Claim(name, None, said)
    except GeomergeError as error:  # if all digests match, a file outside of the run is missing
        return Claim(name, None if intact else False, str(error))
    except Exception as error:  # edited reports and damaged files can raise errors of any type
        return Claim(name, False, _unreadable(error))
    return Claim(name, not wrong, "; ".join(wrong))


def _unreadable(error: Exception) -> str:
    return f"it is damaged ({type(error).__name__}: {first_line(error)})"


def _notes(run: StoredRun, now: Mapping[str, Any]) -> list[str]:
    then = run.certificate.get("environment")
    if not isinstance(then, dict):
        return []
    return [
        f"{key} is {value} here and was {then.get(key)}: an example on the edge of two classes "
        "may be counted otherwise"
        for key, value in now.items()
        if value != then.get(key)
    ]

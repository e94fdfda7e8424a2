"""The built wheel and source distribution: no warning at build, and the demo runs from them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TAKEN = ("geomerge", "cli", "strategies", "pyproject.toml", "README.md", "LICENSE")


def build(folder: Path, kind: str) -> tuple[Path, str]:
    """Return what setuptools builds of a source tree, and what it says meanwhile."""
    code = (
        "import sys, setuptools.build_meta as build\n"
        f"print('BUILT', build.build_{kind}(sys.argv[1]))"
    )
    out = folder.parent / f"{folder.name}-{kind}"
    out.mkdir()
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", code, str(out)],
        cwd=folder, text=True, capture_output=True, check=True, env=environment(),
    )  # fmt: skip
    return out / done.stdout.rpartition("BUILT ")[2].strip(), done.stdout + done.stderr


def environment(**more: str) -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | more


@pytest.mark.slow
def test_the_demo_runs_from_a_wheel_of_the_source_distribution(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in TAKEN:
        whole = ROOT / name
        if whole.is_dir():
            shutil.copytree(
                whole, source / name, symlinks=True,
                ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"),
            )  # fmt: skip
        else:
            shutil.copy(whole, source / name)
    packed, said = build(source, "sdist")
    with tarfile.open(packed) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    wheel, more = build(unpacked, "wheel")
    direct, most = build(source, "wheel")
    for text in (said, more, most):
        assert "absent from the `packages`" not in text
        assert "eprecat" not in text.replace("no_deprecation", "")
    contents = []
    for file in (wheel, direct):
        with zipfile.ZipFile(file) as archive:
            contents.append(sorted(n for n in archive.namelist() if "dist-info" not in n))
            archive.extractall(tmp_path / file.parent.name)
    assert contents[0] == contents[1]
    place = tmp_path / wheel.parent.name
    done = subprocess.run(
        [sys.executable, "-m", "geomerge", "demo", "--out", "demo"],
        cwd=tmp_path, text=True, capture_output=True,
        env=environment(PYTHONPATH=str(place)),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert next((tmp_path / "demo").rglob("report.html"), None) is not None
    where = "import geomerge, geomerge.cli; print(geomerge.__file__)"
    at = subprocess.run(
        [sys.executable, "-c", where], cwd=tmp_path, text=True, capture_output=True,
        env=environment(PYTHONPATH=str(place)),
    )  # fmt: skip
    assert at.stdout.startswith(str(place))

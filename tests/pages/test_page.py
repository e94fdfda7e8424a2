"""The page as a file: one, small, the same again, and safe whatever names a run holds."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import altair as alt
import pytest
from merges import run_of

from geomerge import Checkpoint, load_checkpoint, save_checkpoint
from geomerge.errors import RunError
from geomerge.report.pages.render import _ASSETS
from geomerge.runs.run import open_run

KINDS = ("merge", "sparsify", "reconfigure", "compare", "stream")
LIMIT = 3_000_000  # bytes


class Tags(HTMLParser):
    """Collects tags, and addresses that a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [v for k, v in attrs if k in ("src", "srcset", "data", "action") and v]
        if tag == "link":
            self.addresses += [v for k, v in attrs if k == "href" and v]


@pytest.mark.parametrize("kind", KINDS)
def test_one_small_file_that_fetches_nothing(runs: dict[str, Path], kind: str) -> None:
    content = (runs[kind] / "report.html").read_text()
    assert len(content.encode()) < LIMIT
    found = Tags()
    found.feed(content)
    assert all(address.startswith("data:image/") for address in found.addresses)
    assert "@import" not in (_ASSETS / "page.css").read_text()
    assert "default-src 'none'" in content


@pytest.mark.parametrize("kind", KINDS)
def test_charts_are_vega_lite(runs: dict[str, Path], kind: str) -> None:
    page = (runs[kind] / "report.html").read_text()
    (text,) = re.findall(r'<script [^>]*id="charts"[^>]*>(.*?)</script>', page, re.DOTALL)
    for chart in json.loads(text).values():
        for part in (chart, *chart.get("layer", ())):
            if "data" in part:  # the schema says nothing of what is in a row
                part["data"]["values"] = part["data"]["values"][:1]
        alt.Root.validate(chart)


@pytest.mark.parametrize("kind", KINDS)
def test_the_stored_run_makes_the_same_page_again(
    geomerge: Callable[..., Any], runs: dict[str, Path], kind: str, tmp_path: Path
) -> None:
    copy = tmp_path / kind
    shutil.copytree(runs[kind], copy)
    (copy / "report.html").unlink()
    if kind == "merge":  # once as a user does it
        done = geomerge("report", kind, cwd=tmp_path)
        assert done.returncode == 0
        assert done.stdout == f"written to {kind}/report.html\n"
    else:
        assert open_run(copy).write_page() == copy / "report.html"
    assert (copy / "report.html").read_bytes() == (runs[kind] / "report.html").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_command_in_the_report_makes_the_run_again(
    geomerge: Callable[..., Any], runs: dict[str, Path], kind: str
) -> None:
    folder = runs[kind]
    command = shlex.split(json.loads((folder / "report.json").read_text())["command"])
    assert command[0] == "geomerge"
    done = geomerge(*command[1:], "--out", kind, cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    assert "was finished before; nothing changed" in done.stdout  # the recipe is the same


def test_names_cannot_put_anything_into_the_page(runs: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(runs["merge"], tmp_path / "run")
    file = tmp_path / "run" / "report.json"
    report = json.loads(file.read_text())
    bad = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    report["networks"]["a"]["task"] = bad
    report["results"][2]["name"] = f"straight line'] || alert(3) || ['{bad}"
    file.write_text(json.dumps(report))
    page = open_run(tmp_path / "run").write_page().read_text()
    assert bad not in page
    found, usual = Tags(), Tags()
    found.feed(page)
    usual.feed((runs["merge"] / "report.html").read_text())
    assert found.tags.count("script") == usual.tags.count("script")
    assert found.tags.count("img") == usual.tags.count("img")


def test_a_merge_of_networks_without_tasks_has_a_page(digits: Path, tmp_path: Path) -> None:
    for name in "ab":
        found = load_checkpoint(digits / f"{name}.pt")
        save_checkpoint(tmp_path / f"{name}.pt", Checkpoint(found.weights, {"architecture": "mlp"}))
    options = {
        "manifold": ("a=digits-permuted", "b=digits"),
        "task": (),
        "pick": "equal-drift",
        "steps": 3,
        "points": 8,
    }
    files = [tmp_path / "a.pt", tmp_path / "b.pt"]
    folder, report, _ = run_of(files, options, out=tmp_path / "run")
    page = (folder / "report.html").read_text()
    for row in report["results"]:
        assert row["name"] in page


@pytest.mark.parametrize("name", ["../report.json", "/etc/passwd", "path/a.safetensors", 7])
def test_pictures_come_from_the_run_alone(runs: dict[str, Path], tmp_path: Path, name: Any) -> None:
    shutil.copytree(runs["merge"], tmp_path / "run")
    file = tmp_path / "run" / "report.json"
    report = json.loads(file.read_text())
    report["answers"]["a"]["shown"][0]["image"] = name
    file.write_text(json.dumps(report))
    with pytest.raises(RunError):
        open_run(tmp_path / "run").write_page()


def test_folders_without_a_whole_run_are_refused(
    geomerge: Callable[..., Any], runs: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    shutil.copytree(runs["merge"], tmp_path / "run")
    (tmp_path / "run" / "report.json").write_text('{"recipe": {"merge": {}}}')
    for name in ("empty", "missing", "run"):
        done = geomerge("report", name, cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr.startswith("geomerge: ")
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("place", "value"),
    [("networks", [1, 2]), ("networks", "ab"), ("results", []), ("curve", [{}]), ("layers", 7)],
)
def test_a_damaged_report_is_refused_in_a_sentence(
    runs: dict[str, Path], tmp_path: Path, place: str, value: Any
) -> None:
    shutil.copytree(runs["merge"], tmp_path / "run")
    file = tmp_path / "run" / "report.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), place: value}))
    with pytest.raises(RunError, match="damaged"):
        open_run(tmp_path / "run").write_page()


def test_a_comparison_in_which_nothing_applies_has_a_page(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(runs["compare"], tmp_path / "run")
    file = tmp_path / "run" / "report.json"
    report = json.loads(file.read_text())
    for row in report["rows"]:
        row["reason"] = "does not apply: it needs --base"
    file.write_text(json.dumps(report))
    page = open_run(tmp_path / "run").write_page().read_text()
    assert "No method applies to these networks" in page
    assert page.count("does not apply: it needs --base") == len(report["rows"])


def luminance(color: str) -> float:
    """Relative luminance, WCAG 2.2."""
    parts = [int(color[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_colours_have_contrast_in_every_scheme() -> None:
    css = (_ASSETS / "page.css").read_text()
    schemes = [dict(re.findall(r"--(\w+): (#\w{6})", block))
               for block in re.findall(r":root \{(.*?)\}", css, re.DOTALL)]  # fmt: skip
    assert len(schemes) == 3  # light, dark, print
    for scheme in schemes:
        for ground in ("ground", "panel"):
            for name in ("ink", "faint", "c1", "c2", "c3", "c4", "c5", "c6"):
                pair = sorted(luminance(scheme[k]) for k in (ground, name))
                contrast = (pair[1] + 0.05) / (pair[0] + 0.05)
                assert contrast >= 4.5, (ground, name, contrast)

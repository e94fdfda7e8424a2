from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def test_tables_for_a_stranger_and_numbers_for_a_program(
    geomerge: Callable[..., Any], digits: Path, tmp_path: Path
) -> None:
    common = ("inspect", digits / "a.pt", "--manifold", "digits", "--inputs", "200")
    shown = geomerge(*common, "--out", "found/a.json", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    for said in ("all numbers: found/a.json", "effective rank", "layers.0", "128 at most", "obs"):
        assert said in shown.stdout
    assert "\u2026" not in shown.stdout  # nothing is cut off at 80 columns
    assert "units of layers.2 cannot be removed: they are the network's outputs" in shown.stdout
    printed = geomerge(*common, "--json", cwd=tmp_path)
    found = json.loads(printed.stdout)
    assert found == json.loads((tmp_path / "found/a.json").read_text())
    assert (found["metric_inputs"], found["held_out_inputs"], found["unit_inputs"]) == (
        200,
        200,
        50,
    )


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("none.pt", "--manifold", "digits"), "no file none.pt"),
        (("a.pt", "--manifold", "digtis"), "did you mean 'digits'"),
        (("a.pt", "--manifold", "digits", "--arch", "lenet-300"), "did you mean 'lenet-300-100'"),
        (("a.pt", "--manifold", "digits", "--out", "a.txt"), "expected an output name"),
    ],
)
def test_a_mistake_ends_in_one_sentence(
    geomerge: Callable[..., Any], digits: Path, tmp_path: Path, args: tuple[str, ...], message: str
) -> None:
    (tmp_path / "a.pt").write_bytes((digits / "a.pt").read_bytes())
    done = geomerge("inspect", *args, cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]

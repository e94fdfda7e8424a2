from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch


def test_the_whole_way(geomerge: Callable[..., Any], digits: Path, tmp_path: Path) -> None:
    done = geomerge(
        "merge", digits / "a.pt", digits / "b.pt", "--manifold", "digits", "--damping", "1e-5",
        "--steps", "20", "--points", "8", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "crossover" in done.stdout
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith("a-b-")
    found = geomerge(
        "evaluate", run / "merged.safetensors", "--manifold", "digits", "--manifold",
        "digits-permuted", "--json", cwd=tmp_path,
    )  # fmt: skip
    rows = json.loads(found.stdout)["tasks"]
    report = json.loads((run / "report.json").read_text())
    assert [r["accuracy"] for r in rows] == list(report["results"][-1]["test"].values())
    taken = geomerge("path", run, "--at", "0", "--out", "c.pt", cwd=tmp_path)
    assert taken.returncode == 0, taken.stderr
    first = torch.load(tmp_path / "c.pt", weights_only=True)["state_dict"]
    a = torch.load(digits / "a.pt", weights_only=True)["state_dict"]
    assert all(torch.equal(first[k], a[k]) for k in a)
    again = geomerge(
        "merge", digits / "a.pt", digits / "b.pt", "--manifold", "digits", "--damping", "1e-5",
        "--steps", "20", "--points", "8", "--json", cwd=tmp_path,
    )  # fmt: skip
    assert json.loads(again.stdout) == report


def test_own_data_and_own_network(geomerge: Callable[..., Any], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 6)).astype(np.float32)
    np.savez(tmp_path / "mine.npz", x=x, y=(x[:, 0] > 0).astype(int))
    (tmp_path / "mynet.py").write_text(
        "from torch import nn\ndef make(): "
        "return nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 2))\n"
    )
    made = geomerge(
        "train", "--manifold", "mine.npz", "--arch", "mynet:make", "--epochs", "5", "--out",
        "a.safetensors", cwd=tmp_path,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    done = geomerge(
        "sketch", "a.safetensors", "--manifold", "mine.npz", "--out", "s.safetensors", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "x the weights" in done.stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("merge", "none.pt", "b.pt", "--manifold", "digits"), "no file none.pt"),
        (("merge", "a.pt", "b.pt", "--preset", "joint"), "needs inputs of every network's task"),
        (("merge", "a.pt", "b.pt", "--manifold", "digtis"), "did you mean 'digits'"),
        (("merge", "a.pt", "b.pt", "--manifold", "digits", "--pick", "max"), "did you mean"),
        (("merge", "a.pt", "cut.pt", "--manifold", "digits"), "cut.pt is not a whole"),
        (("merge", "a.pt", "nan.pt", "--manifold", "digits"), "not all finite"),
        (("merge", "a.pt", "b.pt", "--manifold", "digits", "--out", "file"), "not empty"),
        (("evaluate", "a.pt", "--manifold", "mnist"), "no MNIST under data"),
        (("evaluate", "a.pt", "--manifold", "digits", "--split", "train"), "unknown split"),
        (("train", "--manifold", "digits", "--out", "a.bin"), "expected an output name"),
        (("train", "--manifold", "digits", "--out", "x.pt", "--arch", "mpl"), "did you mean 'mlp'"),
        (("path", ".", "--at", "0.5", "--out", "c.pt"), "has no path to take t = 0.5 of"),
        (
            ("sketch", "a.pt", "--manifold", "digits", "--out", "s.pt"),
            "in .safetensors, got s.pt",
        ),
        (("train", "--manifold", "digits"), "missing option '--out'"),
    ],
)
def test_a_mistake_ends_in_one_sentence(
    geomerge: Callable[..., Any],
    digits: Path,
    tmp_path: Path,
    args: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("GEOMERGE_DATA", raising=False)
    for name in ("a.pt", "b.pt"):
        (tmp_path / name).write_bytes((digits / name).read_bytes())
    (tmp_path / "cut.pt").write_bytes((digits / "a.pt").read_bytes()[:5000])
    (tmp_path / "file").write_text("mine")
    state = torch.load(digits / "a.pt", weights_only=True)["state_dict"]
    state["layers.0.bias"][3] = float("nan")
    torch.save(state, tmp_path / "nan.pt")
    before = sorted(p.name for p in tmp_path.iterdir())
    done = geomerge(*args, cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == before

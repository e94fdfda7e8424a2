"""What is done every day: a doctor, evaluations in one table, types that stay."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import geomerge as gm
from geomerge.cli.app import main
from geomerge.steps.qp import qp_solver


def test_the_doctor_says_what_is_there(geomerge: Callable[..., Any], tmp_path: Any) -> None:
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    done = geomerge("doctor", "--data-root", tmp_path, "--json", cwd=tmp_path)
    found = json.loads(done.stdout)
    assert found["quadratic programs"].startswith(qp_solver())
    assert found[f"data in {tmp_path}"] == ["mnist", "rotated-mnist"]
    assert "cpu" in found["devices"]
    for name in ("geomerge", "torch", "numpy", "clarabel"):
        assert found[name][0].isdigit()


def save_networks(folder: Path) -> None:
    for name in "ab":
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
        torch.save(net.state_dict(), folder / f"{name}.ckpt")


def test_several_networks_and_tasks_are_one_table(
    geomerge: Callable[..., Any], tmp_path: Path
) -> None:
    save_networks(tmp_path)
    words = ["evaluate", "a.ckpt", "b.ckpt", "--manifold", "digits", "--manifold"]
    done = geomerge(*words, "digits-permuted", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["network", "digits", "digits-permuted"] in rows
    for name in ("a.ckpt", "b.ckpt"):
        (row,) = (row for row in rows if row and row[0] == name)
        assert all(0 <= float(value) <= 100 for value in row[1:])
    found = json.loads(geomerge(*words, "digits-permuted", "--json", cwd=tmp_path).stdout)
    assert [len(one["tasks"]) for one in found["networks"]] == [2, 2]


def test_a_home_folder_is_one_wherever_it_stands_in_a_word(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given: list[list[str]] = []
    monkeypatch.setattr("geomerge.cli.app.app", lambda words, **_: given.append(words))
    monkeypatch.setenv("HOME", str(tmp_path))
    words = ["~/a.pt", "--out=~/run", "--sketch", "b=~/b.safetensors", "a~/b", "--pick=a>=~0.8"]
    monkeypatch.setattr("sys.argv", ["geomerge", *words])
    with pytest.raises(SystemExit):
        main()
    home = str(tmp_path)
    wanted = [f"{home}/a.pt", f"--out={home}/run", "--sketch", f"b={home}/b.safetensors"]
    assert given == [[*wanted, "a~/b", "--pick=a>=~0.8"]]


def test_a_reader_that_has_enough_is_no_error(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom geomerge.cli.console import speaking\n"
        "with speaking({}, False):\n    print('x' * 100_000)\n    print('y', flush=True)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as run:  # fmt: skip
        assert run.stdout is not None
        assert run.stderr is not None
        run.stdout.close()
        said = run.stderr.read()
    assert (run.returncode, said) == (141, b"")


def test_an_evaluation_imports_no_slow_stranger(tmp_path: Path) -> None:
    save_networks(tmp_path)
    code = (
        "import sys\nsys.argv = ['geomerge', 'evaluate', 'a.ckpt', '--manifold', 'digits']\n"
        "from geomerge.cli.app import main\n"
        "try: main()\nexcept SystemExit as e: assert not e.code\n"
        "print(*sys.modules)"
    )
    run = [sys.executable, "-c", code]
    out = subprocess.run(run, cwd=tmp_path, text=True, capture_output=True, check=True).stdout
    loaded = set(out.split())
    assert not loaded & {"scipy.stats", "sklearn", "avalanche", "matplotlib", "qpth", "cvxpy"}


def test_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    data, task = load_digits(), gm.load_task("digits")
    parts = (task.train, task.select, task.test)
    total = sum(float(split.inputs.raw.double().sum()) for split in parts)
    assert total == data.images.sum() / 16
    counts = sum(torch.bincount(split.labels) for split in parts)
    assert torch.equal(counts, torch.bincount(torch.from_numpy(data.target)))

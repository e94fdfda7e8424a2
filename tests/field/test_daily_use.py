"""What is done every day: a doctor, evaluations in one table, types that stay."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

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

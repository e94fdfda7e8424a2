"""Rehearsal of remembered tasks."""

from __future__ import annotations

from typing import Any

import pytest

from geomerge.continual.rehearsal import Rehearsal


def test_what_is_remembered_has_not_drifted_yet(case: Any) -> None:
    for count in (1, 17, 100, 499, 500, 501):
        remembered = case.remembered(pseudo_inputs=count, examples=7)
        drift, changed = Rehearsal([remembered], lambda _: case.network, 8, 0).drift(case.first)
        assert drift["task 0"] == pytest.approx(0, abs=1e-5)
        assert changed["task 0"] == 0

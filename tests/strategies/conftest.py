"""Avalanche's own test fixtures: its wheel installs them as a package called ``tests``."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import NamedTuple

import pytest

import geomerge.strategies.avalanche  # noqa: F401  # first: without its imports' warnings


class AvalancheTests(NamedTuple):
    strategies: ModuleType
    utils: ModuleType
    benchmarks: ModuleType


@pytest.fixture(scope="session")
def avalanche_tests() -> AvalancheTests:
    # pytest has entered this folder's modules under the same name.
    ours = {k: sys.modules.pop(k) for k in list(sys.modules) if k.partition(".")[0] == "tests"}
    try:
        names = ("training.test_strategies", "training.test_strategy_utils", "unit_tests_utils")
        return AvalancheTests(*(importlib.import_module(f"tests.{name}") for name in names))
    finally:
        sys.modules.update(ours)

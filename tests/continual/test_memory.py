"""Memory of tasks: what is stored, and how it shrinks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from geomerge import Network
from geomerge.continual import Experience, fit_memory, remember
from geomerge.data import as_they_are
from geomerge.errors import OptionError


def test_memory_shrinks_to_a_limit_and_still_works(case: Any) -> None:
    memory = [case.remembered(), replace(case.remembered(), name="task 1")]
    whole = sum(task.nbytes for task in memory)
    for share in (0.9, 0.6, 0.35):
        small = fit_memory(memory, int(share * whole), lambda _: case.network, case.first)
        assert sum(task.nbytes for task in small) <= share * whole
        assert 0 < small[0].kept["moments"] <= 1
        w, _ = case.merge(small[:1])
        assert case.accuracy(w, 0) > 0.9
    with pytest.raises(OptionError, match="raise `memory_mb`"):
        fit_memory(memory, 1000, lambda _: case.network, case.first)


def test_oldest_sketches_become_one_before_memory_gives_up(case: Any) -> None:
    one = case.remembered(pseudo_inputs=0, examples=1)
    memory = [replace(one, name=f"task {k}") for k in range(4)]
    least = sum(t.nbytes - t.sketch.nbytes for t in memory if t.sketch is not None)
    small = fit_memory(memory, least + 1000, lambda _: case.network, case.first)
    assert [t.sketch is None for t in small] != [False] * 4
    assert sum(t.tasks for t in small if t.sketch is not None) == 4


@pytest.mark.parametrize(
    ("changes", "sketched"),
    [
        ({}, True),
        ({"metric": "euclidean"}, False),
        ({"metric": "euclidean", "budget": 0.1}, True),
    ],
)
def test_a_sketch_is_stored_where_metric_or_budget_need_it(
    case: Any, changes: dict[str, Any], sketched: bool
) -> None:
    assert (case.remembered(**changes).sketch is not None) == sketched


def test_integers_have_no_moments(case: Any) -> None:
    tokens = Experience(as_they_are(torch.randint(0, 9, (20, 8))))
    network = Network(nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(32, 3)))
    with pytest.raises(OptionError, match="integers"):
        remember(network, network.initial, tokens, case.options())

"""Options of the merge after an experience."""

from __future__ import annotations

from dataclasses import replace

import pytest

from geomerge.continual import ContinualOptions
from geomerge.errors import OptionError


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"damping": 0}, "`damping` to be a positive number, got 0"),
        ({"examples": -1}, "`examples` to be 0 or more, got -1"),
        ({"momentum": 1.0}, "`momentum`"),
        ({"metric_tasks": "late"}, "`metric_tasks` to be 'earlier', 'new' or .*, got 'late'"),
        ({"statistics": "frozen"}, "unknown statistics 'frozen'"),
        ({"budget": -1.0}, "`budget` .* got -1.0"),
        ({"inputs": 0}, "`inputs` .* got 0"),
        ({"metric": "exact"}, "unknown metric 'exact'"),
        ({"epoch": 3}, "unknown option `epoch`; did you mean 'epochs'"),
    ],
)
def test_options_out_of_range(changes: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        replace(ContinualOptions(), **changes)
    with pytest.raises(OptionError, match=message):
        ContinualOptions(**changes)


def test_the_manifold_is_called_metric_tasks_now() -> None:
    with pytest.warns(DeprecationWarning, match="`manifold` is called `metric_tasks`"):
        assert ContinualOptions(manifold="new").metric_tasks == "new"

"""Options of a stream table."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from geomerge.errors import OptionError
from geomerge.options import parse_size
from geomerge.strategies.methods.geodesic import expert_epochs, merge_options
from geomerge.strategies.options import StreamOptions


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"stream": "split-mnst"}, "did you mean 'split-mnist'"),
        ({"stream": "split-mnist", "scenario": "tasks"}, "did you mean 'task'"),
        ({"stream": "permuted-mnist", "scenario": "task"}, "leave it out"),
        ({"stream": "split-mnist", "experiences": 3}, "give 2 or 5"),
        ({"stream": "mnist-fashion", "experiences": 3}, "give 2"),
        ({"stream": "permuted-mnist", "experiences": 1}, "2 to 100"),
        ({"stream": "split-mnist", "only": ("geodesc",)}, "did you mean 'geodesic'"),
        ({"stream": "split-mnist", "only": ("ewc",), "skip": ("ewc",)}, "no row is left"),
        ({"stream": "split-mnist", "rates": ("ewc",)}, "ROW=RATE"),
        ({"stream": "split-mnist", "rates": ("ewc=-1",)}, "positive"),
        ({"stream": "split-mnist", "arch": "resnet"}, "mlp-100"),
        ({"stream": "split-mnist", "first_classes": 5}, "give 5 and 6, say"),
        ({"stream": "permuted-mnist", "first_classes": 5}, "is none; leave it out"),
        ({"stream": "split-mnist", "epochs": 1}, "give more `epochs`"),
        ({"stream": "split-mnist", "epochs": 0}, "`epochs` to be 1 or more"),
        ({"stream": "split-mnist", "walk_epochs": 5}, "fewer `walk_epochs`"),
        ({"stream": "split-mnist", "memory_mb": 0.0}, "positive"),
        ({"stream": "split-mnist", "damping": -1.0}, "damping"),
        ({"stream": "split-mnist", "memory_examples": (0,)}, "`memory_examples`"),
    ],
)
def test_options_that_cannot_be_used_are_refused(options: dict[str, Any], part: str) -> None:
    with pytest.raises(OptionError, match=part):
        StreamOptions(**options)


def test_epochs_are_shared_between_expert_and_walk() -> None:
    def shared(**given: Any) -> tuple[int, float]:
        options = StreamOptions("split-mnist", **given)
        return expert_epochs(options), merge_options(options).walk.epochs

    assert shared() == (4, 1)
    assert shared(walk_epochs=3) == (2, 3)
    assert shared(labels=True, epochs=1) == (0, 1)
    assert StreamOptions("split-mnist", epochs=1, skip=("geodesic",)).rows[0] == "naive"


def test_recipes_are_those_of_version_0_1() -> None:
    assert StreamOptions("split-mnist", "domain", epochs=3, data_root="/elsewhere").recipe() == {
        "stream": {
            "stream": "split-mnist", "scenario": "domain", "experiences": None, "only": [],
            "skip": [], "epochs": 3, "batch": 128, "learning_rate": 0.05, "rates": [],
            "arch": "mlp-100", "memory_examples": [200, 500], "ewc_lambda": 1000.0,
            "si_lambda": 100.0, "lwf_alpha": 1.0, "walk_epochs": None, "walk_rate": None,
            "metric": "kronecker", "labels": False, "examples": 0, "damping": None,
            "budget": None, "memory_mb": None, "seed": 0,
        }
    }  # fmt: skip


def test_names_of_rows_are_known_without_avalanche() -> None:
    code = (
        "from geomerge.strategies import StreamOptions\n"
        "assert 'replay-7' in StreamOptions(memory_examples=(7,)).all_rows\n"
        "import sys\nassert 'avalanche' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_sizes_are_read() -> None:
    assert parse_size("20MB") == 20_000_000
    assert parse_size("1.5 k") == 1500
    assert parse_size("7") == 7

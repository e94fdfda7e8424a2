from __future__ import annotations

from dataclasses import fields, is_dataclass, replace

import pytest

from geomerge.errors import OptionError
from geomerge.options import option_fields
from geomerge.pruning.options import InspectOptions, ReconfigureOptions, SparsifyOptions


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sparsity": 0.0}, "expected `sparsity` to be between 0 and 1"),
        ({"sparsity": 90}, "expected `sparsity` to be between 0 and 1"),
        ({"flops": 1.0}, "expected `flops` to be between 0 and 1"),
        ({"nm": "4:2"}, "`nm` to be N:M"),
        ({"per_layer": True, "nm": "2:4"}, "give `sparsity` too"),
        ({"remove": {"layers.0": "x"}}, "expected a count such as 50"),
        ({"remove": {"layers.0": True}}, "expected a count such as 50"),
        ({"remove": {"a": 1}, "budget": 0.1}, "set `choice` to rates too"),
        ({"sparsity": 0.5, "walk": "pul"}, "unknown walk 'pul'"),
        ({"sparsity": 0.5, "saliency": "obx"}, "unknown saliency 'obx'"),
        ({"sparsity": 0.5, "steps": 0}, "expected `steps` to be 1 or more, got 0"),
        ({"sparsity": 0.5, "damping": -1.0}, "expected `damping` to be a positive number, got -1"),
    ],
)
def test_options_that_make_no_sense(wrong: dict, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        SparsifyOptions(**wrong)


# Recipes of version 0.1, by which finished runs are recognised.
RECORDED = {
    "sparsity": None, "per_layer": False, "nm": None, "remove": [], "flops": None, "params": None,
    "walk": "prescribed", "metric": "kronecker", "output": "tempered", "saliency": "obs",
    "choice": "greedy", "budget": None, "bn": None, "damping": None, "learning_rate": None,
    "steps": None, "batch": 128, "stages": 30, "refresh": 3, "inputs": None, "mix": None,
    "labels": False, "paths": 1, "points": 32, "seed": 0,
}  # fmt: skip


def test_recipes_are_those_of_earlier_runs() -> None:
    assert SparsifyOptions().recorded() == RECORDED
    remove = {"features.0": 50, "features.3": 0.5, "classifier.0": [1, 2, 5, 6, 7, 8, 9]}
    texts = ["features.0:50", "features.3:0.5", "classifier.0:1,2,5-9"]
    assert SparsifyOptions(remove=remove).recorded() == {**RECORDED, "remove": texts}
    moves = ReconfigureOptions(steps=4, stages=10)
    assert moves.recorded() == {**RECORDED, "steps": 4, "stages": 10}


@pytest.mark.parametrize("options", [SparsifyOptions, ReconfigureOptions, InspectOptions])
def test_every_option_is_explained_in_a_small_class(options: type) -> None:
    def pieces(cls: type) -> list[type]:
        inner = [one.default_factory for one in fields(cls) if is_dataclass(one.default_factory)]
        return [cls, *(found for one in inner for found in pieces(one))]

    assert all(len(fields(cls)) <= 10 for cls in pieces(options))
    names = [one.name for one in option_fields(options)]
    assert len(set(names)) == len(names)
    for one in option_fields(options):
        assert one.text
        assert one.text[0].islower() or one.text.startswith("LAYER")
        assert one.group


def test_flat_names_reach_every_piece() -> None:
    options = SparsifyOptions(sparsity=0.5, metric="euclidean", steps=7, choice="magnitude")
    assert (options.goal.kind, options.goal.removes_units) == ("sparsity", False)
    assert options.function.geometry.metric == "euclidean"
    assert (options.walking.steps, options.ranking.choice) == (7, "magnitude")
    assert replace(options, output="logits").function.geometry.output == "logits"
    with pytest.raises(OptionError, match="unknown option `spasity`; did you mean 'sparsity'"):
        SparsifyOptions(spasity=0.5)

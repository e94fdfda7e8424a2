"""The command that a report names: read by the command line it says the same options again."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from geomerge import MergeOptions
from geomerge.cli.commands import load_command
from geomerge.comparison import CompareOptions
from geomerge.expert_options import DataOptions, ExpertOptions
from geomerge.options import recorded
from geomerge.pruning.options import SparsifyOptions
from geomerge.runs.command import command_line
from geomerge.strategies import StreamOptions

MERGE_DATA = DataOptions(
    manifold=("mnist", "b=my task"), task=("b=fashion-mnist",),
    sketch=("b=deep/down/b.safetensors",), arch="mlp-400", normalisation=("mnist=0.1/0.3",),
    data_root="/elsewhere", device="cpu",
)  # fmt: skip
MERGE = MergeOptions(
    preset="sketch", metric="exact", output="logits", head="offset", align="weights", bn="keep",
    damping=1e-5, learning_rate=0.02, steps=7, budget={"b": 0.02, "a/*": 0.1}, keep_zeros=True,
    augment="shifts", pick="a>=0.80", memory="2GB", points=9, seed=3,
)  # fmt: skip
DATA = ExpertOptions(manifold="cifar10", data_root="/elsewhere")
SPARSIFY = SparsifyOptions(
    remove={"features.0": 50, "features.3": 0.5}, choice="rates", budget=0.1,
    labels=True, paths=3, seed=2, steps=90, stages=5, mix=0.5, inputs=500,
)  # fmt: skip
STREAM = StreamOptions(
    stream="split-mnist", scenario="class", only=("geodesic", "naive"), rates=("naive=0.01",),
    memory_examples=(50, 100), epochs=3, examples=4,
)  # fmt: skip


def parsed(line: str) -> tuple[list[str], dict[str, Any]]:
    words = shlex.split(line)
    assert words[0] == "geomerge"
    return words, load_command(words[1]).make_context(words[1], words[2:]).params


def same(options: Any, params: dict[str, Any], names: dict[str, str], leave: set[str]) -> None:
    for name, want in recorded(options, *leave).items():
        got = params[names.get(name, name)]
        if isinstance(want, list):
            words = got.split(",") if isinstance(got, str) else got or ()
            if name in ("only", "skip"):  # the command takes several names in one word
                words = [word for item in words for word in item.split(",")]
            assert [*map(str, words)] == [*map(str, want)], name
        else:  # numbers are words until the command reads them
            assert got == want or got == str(want), name


def test_a_merge() -> None:
    line = command_line("merge", [Path("far/a.pt"), "b c.pt"], (MERGE_DATA, MERGE))
    words, params = parsed(line)
    assert words[2:4] == ["a.pt", "b c.pt"]  # files without their folders
    assert params["sketch"] == ["b=b.safetensors"]
    assert "/elsewhere" not in line
    same(MERGE, params, {}, set())
    same(MERGE_DATA, params, {}, {"sketch"})


def test_a_sparsification_and_what_else_was_asked_for() -> None:
    _, params = parsed(command_line("sparsify", ["vgg.pt"], (DATA, SPARSIFY), shrink=True))
    assert params["shrink"]
    same(SPARSIFY, params, {}, set())
    same(DATA, params, {}, {"data_root", "download", "device"})


def test_a_stream() -> None:
    _, params = parsed(command_line("stream", [STREAM.stream], STREAM))
    assert params["stream"] == "split-mnist"
    same(STREAM, params, {}, {"data_root", "download", "device"})


def test_a_comparison() -> None:
    options = CompareOptions(merge=MergeOptions(seed=4), skip=("ewc", "ties"), max_samples=5000)
    data, base = DataOptions(manifold=("mnist",)), Path("deep/base.pt")
    line = command_line("compare", ["a.pt", "b.pt"], (data, options), base=base)
    _, params = parsed(line)
    assert params["base"] == Path("base.pt")
    assert params["manifold"] == ["mnist"]
    assert params["seed"] == "4"
    assert params["skip"] == ["ewc,ties"]
    assert "--budget 5000" in line
    assert params["max_samples"] == "5000"


def test_files_of_one_name_are_told_apart() -> None:
    line = command_line("merge", ["/x/run1/model.pt", "/x/run2/model.pt"], MergeOptions())
    assert line == "geomerge merge run1/model.pt run2/model.pt"
    line = command_line("merge", ["/x/a.pt", "/x/a.pt"], MergeOptions())
    assert line == "geomerge merge a.pt a.pt"


@pytest.mark.parametrize(
    ("command", "options"), [("merge", MergeOptions()), ("sparsify", SparsifyOptions(sparsity=0.9))]
)
def test_what_is_usual_is_not_said(command: str, options: Any) -> None:
    line = command_line(command, ["a.pt"], options)
    assert line in ("geomerge merge a.pt", "geomerge sparsify a.pt --sparsity 0.9")

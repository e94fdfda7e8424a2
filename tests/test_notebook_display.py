"""What notebooks show of results: well-formed HTML with the numbers, and names escaped."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from merges import experts_of, merged_of

from geomerge import Network, load_checkpoint, load_task, make_sketch
from geomerge.comparison import CompareOptions, compare
from geomerge.networks.architectures import rebuild_network
from geomerge.notebook import Curve, Dot, card, drawing, ruler, table
from geomerge.pruning.options import SparsifyOptions
from geomerge.pruning.sparsify import sparsify

EVIL = '<script>alert("1 & 2")</script>'
VOID = {"rect", "line", "circle", "polyline"}


class Consumer(HTMLParser):
    """Collects text and tags, and fails where tags do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)
        self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        assert tag in VOID
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + " "


def read(html: str) -> Consumer:
    reader = Consumer()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    assert "script" not in reader.tags
    return reader


def test_a_table_holds_its_cells_and_escapes_them() -> None:
    found = read(table(("method", EVIL), [("a<b", "1.5"), (EVIL, "2")]))
    assert found.tags.count("tr") == 3
    assert "a<b" in found.text
    assert found.text.count(EVIL) == 2


def test_a_drawing_scales_from_below_its_lowest_value_to_one() -> None:
    curve = Curve(EVIL, [(0.0, 0.83), (0.5, 1.0), (1.0, 0.95)])
    html = drawing([curve], "t & t", "acc", mark=("here", 0.7), dots=[Dot("dot", 0.1, 0.9)])
    found = read(html)
    assert EVIL in found.text
    assert "0.8 " in found.text  # the lowest tick
    points = html.split('points="')[1].split('"')[0].split()
    (x0, y0), (x1, y1), (x2, y2) = (tuple(map(float, point.split(","))) for point in points)
    assert x1 - x0 == pytest.approx(x2 - x1)
    assert (y0 - y1) / (y2 - y1) == pytest.approx(0.17 / 0.05, rel=1e-3)


def test_a_ruler_and_a_card() -> None:
    html = card(EVIL, ruler(("a", EVIL), [0.0, 0.25, 1.0], ("crossover", 0.25)))
    found = read(html)
    assert found.text.count(EVIL) == 2
    assert found.tags.count("line") == 1 + 3


def test_nothing_sets_a_colour_that_one_of_dark_and_light_cannot_show() -> None:
    html = drawing([Curve("a", [(0, 0), (1, 1)])], "x", "y") + table(("a",), [("b",)])
    for word in ("black", "white", "#000", "#fff", "background"):
        assert word not in html


@pytest.fixture(scope="module")
def options() -> dict[str, Any]:
    return {"manifold": ("digits",), "damping": 1e-5, "steps": 20}


def test_a_merge_and_its_path_show_themselves(digits: Path, options: dict[str, Any]) -> None:
    networks = [load_checkpoint(digits / f"{name}.pt") for name in "ab"]
    merged = merged_of(networks, options)
    found = read(merged._repr_html_())
    assert list(merged.accuracies) == ["a", "b"]
    for value in merged.accuracies.values():
        assert value is not None
        assert f"{100 * value:.2f} %" in found.text
        assert f"{100 * value:.2f} %" in repr(merged)
    assert f"t = {merged.t:.4g}" in found.text
    assert found.tags.count("polyline") == 2
    path = read(merged.path._repr_html_())
    assert f"{merged.path.lengths['a']:.4g}" in path.text
    assert f"crossover at t = {merged.t:.4g}" in repr(merged.path)
    assert str(merged.path.folder) not in merged.path._repr_html_() + repr(merged.path)


def test_a_task_without_labels_is_not_measured(digits: Path, options: dict[str, Any]) -> None:
    a, b = (load_checkpoint(digits / f"{name}.pt") for name in "ab")
    merged = merged_of(
        [a, replace(b, meta={"architecture": "lenet-300-100"}, sketch={})],
        dict(options, damping=1e-3),
    )
    assert "not measured" in read(merged._repr_html_()).text


def test_a_sketch_shows_its_layers(digits: Path) -> None:
    checkpoint = load_checkpoint(digits / "a.pt")
    network = Network(rebuild_network(checkpoint.weights, "mlp", "a"))
    inputs = load_task("digits").train.inputs
    sketch = make_sketch(network, network.initial, inputs, EVIL, count=100)
    found = read(sketch._repr_html_())
    assert EVIL in found.text
    for layer in sketch.metric.layers:
        size, kept = layer.inputs.vectors.shape
        assert layer.name in found.text
        assert f"{kept} of {size}" in found.text
    assert "100 inputs" in repr(sketch)
    assert len(repr(sketch)) < 200


def test_a_sparsification_shows_its_rows(digits: Path, tmp_path: Path) -> None:
    options = SparsifyOptions(sparsity=0.8, steps=10, stages=2)
    sparse = sparsify(digits / "a.pt", options, folder=tmp_path)
    found = read(sparse._repr_html_())
    for row in sparse.rows:
        assert row.name in found.text
        assert f"{100 * row.test:.2f}" in found.text
    assert "80.0%" in repr(sparse)


def test_a_comparison_shows_its_rows_the_best_first(digits: Path) -> None:
    networks = [load_checkpoint(digits / f"{name}.pt") for name in "ab"]
    experts = experts_of(networks, {"manifold": ("digits", "digits-permuted")})
    options = CompareOptions(only=("average", "a", "regmean", "ties"))
    comparison = compare(experts, options)
    drops = [comparison.worst_drop(row) for row in comparison.ranked]
    assert drops == sorted(drops)
    found = read(comparison._repr_html_())
    for row in comparison.ranked:
        assert f"{100 * row.test['b']:.2f}" in found.text
    assert "`base`" in found.text  # why ties is not there
    assert comparison.ranked[0].method.name in repr(comparison)
    assert torch.Tensor.__name__.lower() not in repr(comparison)

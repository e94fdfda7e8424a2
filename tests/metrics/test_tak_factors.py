"""Files of TAK's factors: the metric that they hold, and files that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import geomerge as gm
from geomerge.errors import CheckpointError
from geomerge.metrics import load_sketch, save_sketch


class Encoder(nn.Module):
    """Features of a norm layer and two linear layers, and a head that TAK does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.visual_encoder = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 3))
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.visual_encoder(x))
        return scores


def grams(seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Return random factors under the names that TAK gives the encoder's weights."""
    generator = torch.Generator().manual_seed(seed)

    def gram(width: int) -> Tensor:
        rows = torch.randn(9, width, generator=generator, dtype=torch.float64)
        return rows.T @ rows

    inputs = {"0.weight": gram(6), "2.weight": gram(4)}  # the first with its bias
    outputs = {"0.weight": gram(4), "2.weight": gram(3)}
    return inputs, outputs, {"1.weight": gram(4), "1.bias": gram(4)}


def written(folder: Path, seed: int = 0, **others: Any) -> Path:
    folder.mkdir(exist_ok=True)
    inputs, outputs, norms = grams(seed)
    count = torch.tensor([10])
    files = {"aaT": inputs, "ggT": outputs, "ffT": norms, "num_aaT": count, "num_ggT": count}
    for kind, content in {**files, **others}.items():
        torch.save(content, folder / f"seq-8vision_task_{seed}_{kind}.pt")
    return folder / f"seq-8vision_task_{seed}_aaT.pt"


@pytest.fixture
def network() -> gm.Network:
    torch.manual_seed(0)
    return gm.Network(Encoder())


def test_factors_are_the_metric_of_their_layers(network: gm.Network, tmp_path: Path) -> None:
    sketch = load_sketch(written(tmp_path), network, network.initial)
    inputs, outputs, norms = grams(0)
    v = torch.randn(network.n, generator=torch.Generator().manual_seed(1))
    parts = network.unravel(v)
    name = "visual_encoder.{}".format
    first = torch.cat([parts[name("0.weight")], parts[name("0.bias")][:, None]], dim=1).double()
    last = parts[name("2.weight")].double()
    expected = float((outputs["0.weight"] / 10 @ first @ inputs["0.weight"] / 10 * first).sum())
    expected += float((outputs["2.weight"] / 10 @ last @ inputs["2.weight"] / 10 * last).sum())
    for k in ("1.weight", "1.bias"):
        expected += float((norms[k].diagonal() / 10 * parts[name(k)].double().square()).sum())
    assert sketch.metric.inner(v, v) == pytest.approx(expected, rel=1e-5)
    assert sketch.meta["inputs"] == 10
    assert sketch.meta["task"] == "seq-8vision"
    assert sketch.meta["unmeasured"] == [name("2.bias"), "head.weight", "head.bias"]


def test_factors_survive_as_a_sketch_of_our_own(network: gm.Network, tmp_path: Path) -> None:
    sketch = load_sketch(written(tmp_path), network, network.initial)
    save_sketch(tmp_path / "own.safetensors", sketch)
    again = load_sketch(tmp_path / "own.safetensors", network, network.initial)
    v = torch.randn(network.n)
    assert again.metric.inner(v, v) == pytest.approx(sketch.metric.inner(v, v), rel=1e-5)


def test_networks_merge_by_the_factors_of_their_tasks(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = Encoder()
    files = [tmp_path / name for name in ("a.pt", "b.pt")]
    for file in files:
        module = Encoder()
        module.load_state_dict(base.state_dict())
        with torch.no_grad():
            module.visual_encoder[0].weight.add_(torch.randn(4, 5), alpha=0.1)
        torch.save(module.state_dict(), file)
    factors = [written(tmp_path / str(k), k) for k in range(2)]
    merged = gm.merge(
        files, base=gm.Expert.from_module(base), arch=Encoder,
        sketch=tuple(f"{name}={file}" for name, file in zip("ab", factors, strict=True)),
    )  # fmt: skip
    assert merged.preset.name == "sketches"
    assert any("features without a head" in note for note in merged.notes)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"ggT": {"0.weight": torch.eye(4)}}, "not of one task"),
        ({"aaT": {"0.weight": torch.eye(6), "2.weight": print}}, "nothing else"),
        ({"ffT": [torch.eye(4)]}, "nothing else"),
        ({"num_ggT": torch.tensor([0])}, "number of inputs"),
        ({"ffT": {"1.weight": torch.eye(3)}}, "3 rows, expected 4"),
        ({"ffT": {"9.weight": torch.eye(3)}}, "'9.weight'"),
        ({"aaT": {"0.weight": torch.eye(8), "2.weight": torch.eye(4)}}, "8 rows, expected 5 or 6"),
        ({"ggT": {"0.weight": torch.eye(9), "2.weight": torch.eye(3)}}, "9 rows, expected 4"),
        ({"ggT": {"0.weight": -torch.eye(4), "2.weight": torch.eye(3)}}, "square matrix"),
    ],
)
def test_files_of_something_else_are_refused(
    network: gm.Network, tmp_path: Path, others: Any, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_sketch(written(tmp_path, **others), network, network.initial)


def test_a_missing_file_is_named(network: gm.Network, tmp_path: Path) -> None:
    file = written(tmp_path)
    (tmp_path / "seq-8vision_task_0_ffT.pt").unlink()
    with pytest.raises(CheckpointError, match=r"0_ffT\.pt"):
        load_sketch(file, network, network.initial)

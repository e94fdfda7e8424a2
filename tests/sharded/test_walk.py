"""Sharded walks and metrics against those of one process, and the bytes that each holds."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from model_folders import TASKS
from process_groups import run
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification

import geomerge as gm
from geomerge.metrics import combine, measure_metric
from geomerge.metrics.kronecker.estimate import estimate_kronecker
from geomerge.processes import Team, together
from geomerge.sharded.layout import Layout
from geomerge.sharded.measure import measure_sharded
from geomerge.sharded.network import OwnLayers, ShardedNetwork, parameters_without_memory
from geomerge.sharded.sources import Sources
from geomerge.sharded.walk import Measuring, ShardedWalk, Teacher, answers, share_right
from geomerge.walks.objectives import KLToTeacher, log_probabilities
from geomerge.walks.walk import FunctionWalkOptions, walk_toward_function

WALK = FunctionWalkOptions(damping=1e-3, steps=2, learning_rate=0.5, batch=20, refresh=(0, 1))


def experts(place: Path) -> list[gm.Expert]:
    return [gm.Expert.load(place / task, str(place / f"{task}.csv")) for task in TASKS]


def _walked(rank: int, place: Path) -> dict[str, Any]:
    """The whole weights after a sharded walk in float64, its numbers, and the bytes held here."""
    known = experts(place)
    with together() as mates:
        mates = mates or Team(dist.new_group())  # a group of one
        sources = Sources([place / task for task in TASKS], base=place / "base")
        network = ShardedNetwork(sources.module(torch.float64), mates)

        def mean(name: str, start: int, stop: int) -> Tensor:
            return sources.mean_rows(name, start, stop, torch.float64)

        network.fill(mean)
        held = network.probe([("", expert.inputs.batch(slice(0, 1))) for expert in known])
        assert held == []
        layout = Layout(network)
        teachers, accuracies = [], []
        for name, expert in zip(sources.folders, known, strict=True):
            network.fill(lambda *at, name=name: sources.rows(name, *at))
            network.use(sources.number(name))
            teachers.append(Teacher(expert.inputs, answers(network, expert.inputs, 8)))
            accuracies.append(share_right(network, expert.task.test, 4))
        network.fill(mean)
        walk = ShardedWalk(network, layout, teachers, WALK, Measuring(at_once=7))
        numbers = []
        while walk.taken < walk.steps:
            if walk.due:
                walk.measure()
            step = walk.step()
            numbers.append([step.distance, step.norm, step.predicted])
        assert walk.metric is not None
        held_bytes = [network.nbytes, walk.momentum.nbytes, walk.metric.nbytes]
        return {
            "weights": {name: network.whole(name).full_tensor() for name in network.shapes},
            "numbers": torch.tensor(numbers, dtype=torch.float64),
            "bytes": torch.tensor(held_bytes), "accuracies": torch.tensor(accuracies),
        }  # fmt: skip


def walked_densely(place: Path) -> tuple[dict[str, Tensor], Tensor]:
    """The same walk in one process, by the functions of merges without shards."""
    known = experts(place)
    sources = Sources([place / task for task in TASKS], base=place / "base")
    module = sources.module(torch.float64)
    module = module._apply(
        lambda t: t if t.device.type == "cpu" else torch.zeros_like(t, device="cpu")
    )
    networks = []
    for number in range(len(known)):
        for layer in module.modules():
            if isinstance(layer, OwnLayers):
                layer.active = number
        networks.append(gm.Network(module))
    shapes = networks[0].shapes
    start = networks[0].ravel(
        {k: sources.mean_rows(k, 0, shape[0], torch.float64) for k, shape in shapes.items()}
    )
    directions = []
    for network, expert in zip(networks, known, strict=True):
        own = gm.Network(expert.module().double())
        targets = log_probabilities(own, own.initial, expert.inputs)
        directions.append(KLToTeacher(network, targets, expert.inputs, WALK.batch, 0))

    def metric_at(w: Tensor) -> Any:
        pairs = zip(networks, known, strict=True)
        found = [measure_metric(n, w, e.inputs.sample(2000, 0)) for n, e in pairs]
        return combine(found, mean=True).truncate(WALK.damping)

    points = list(walk_toward_function(start, metric_at, directions, WALK))
    numbers = [[p.distance, p.norm, p.predicted] for p in points]
    return networks[0].unravel(points[-1].weights), torch.tensor(numbers, dtype=torch.float64)


@pytest.mark.parametrize("sizes", [(1, 2), pytest.param((1, 3), marks=pytest.mark.slow)])
def test_a_sharded_walk_is_the_walk_of_one_process_in_a_share_of_its_memory(
    sizes: tuple[int, int], place: Path, tmp_path: Path
) -> None:
    truth, numbers = walked_densely(place)
    held = {}
    for size in sizes:
        folder = tmp_path / str(size)
        folder.mkdir()
        found = run(_walked, size, folder, place)
        assert len(found) == size
        for one in found:
            torch.testing.assert_close(one["numbers"], numbers, rtol=1e-9, atol=1e-15)
            for name, whole in truth.items():
                torch.testing.assert_close(one["weights"][name], whole, rtol=0, atol=1e-12)
            accuracies = [expert.accuracy() for expert in experts(place)]
            assert one["accuracies"].tolist() == pytest.approx(accuracies)
        held[size] = torch.stack([one["bytes"] for one in found])
    one, several = held[1][0], held[sizes[1]]  # nothing is held twice
    assert several[:, :2].sum(dim=0).tolist() == one[:2].tolist()
    assert float(several[:, 2].sum()) == pytest.approx(float(one[2]), rel=0.05)
    assert int(several.sum(dim=1).max()) < 1.25 * int(one.sum()) / sizes[1]


def vit() -> nn.Module:
    sizes = {
        "image_size": 8, "patch_size": 4, "num_channels": 1, "hidden_size": 8,
        "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12, "num_labels": 3,
    }  # fmt: skip
    torch.manual_seed(0)
    return ViTForImageClassification(ViTConfig(**sizes)).double().eval()


def _measured(rank: int) -> dict[str, Any]:
    whole = vit()
    with parameters_without_memory():
        module = ViTForImageClassification(whole.config).double()
    with together() as mates:
        assert mates is not None
        network, weights = ShardedNetwork(module, mates), dict(whole.named_parameters())
        network.fill(lambda name, start, stop: weights[name].detach()[start:stop])
        inputs = images()
        held = network.probe([("images", inputs.batch(slice(0, 1)))])
        assert held == ["vit.embeddings.cls_token", "vit.embeddings.position_embeddings"]
        layout = Layout(network)
        # 7 inputs, of which the last pass gives the second process none
        metric = measure_sharded(network, layout, inputs, at_once=2)

        def numbered(name: str) -> Tensor:
            shape, place = network.shapes[name], slice(*network.rows(name))
            return torch.linspace(-1, 1, shape.numel(), dtype=torch.float64).view(shape)[place]

        image = layout.returned(metric.mv(layout.gathered(numbered)))
        return {name: network.placed(name, part).full_tensor() for name, part in image}


def images() -> gm.data.Inputs:
    x = torch.randn(7, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return gm.data.as_they_are(x, dtype=torch.float64)


def test_hooks_measure_the_metric_of_convolutions_norms_and_products(tmp_path: Path) -> None:
    network = gm.Network(vit())
    metric = estimate_kronecker(network, network.initial, images().equal_batches(256))
    v = [torch.linspace(-1, 1, s.numel(), dtype=torch.float64) for s in network.shapes.values()]
    truth = network.unravel(metric.mv(torch.cat(v)))
    one, other = run(_measured, 2, tmp_path)
    assert len(one) == len(network.shapes) - 2
    for name, image in one.items():
        assert torch.equal(other[name], image)
        torch.testing.assert_close(image, truth[name], rtol=1e-9, atol=1e-15)


class Twice(nn.Module):
    """A network that uses a table and a norm twice, as blocks that share weights do."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(5, 4), nn.LayerNorm(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        ids = x.flatten(1).long()
        first = self.norm(self.table(ids[:, :2]))
        return self.head(self.norm(first.tanh() + self.table(ids[:, 1:3])).tanh().sum(dim=1))


def twice() -> nn.Module:
    torch.manual_seed(0)
    module = Twice().double().eval()
    nn.init.normal_(module.norm.weight)
    return module


def numbers() -> gm.data.Inputs:
    x = torch.randint(0, 5, (7, 1, 1, 3), generator=torch.Generator().manual_seed(0)).double()
    return gm.data.as_they_are(x, dtype=torch.float64)


def _measured_twice(rank: int) -> dict[str, Any]:
    whole = twice()
    with parameters_without_memory():
        module = Twice().double()
    with together() as mates:
        assert mates is not None
        network, weights = ShardedNetwork(module, mates), dict(whole.named_parameters())
        network.fill(lambda name, start, stop: weights[name].detach()[start:stop])
        assert network.probe([("numbers", numbers().batch(slice(0, 1)))]) == []
        layout = Layout(network)
        metric = measure_sharded(network, layout, numbers(), at_once=2)
        ones = torch.ones(layout.n, dtype=torch.float64)
        image = layout.returned(metric.mv(ones))
        return {name: network.placed(name, part).full_tensor() for name, part in image}


def test_weights_used_twice_have_the_squares_of_one_derivative(tmp_path: Path) -> None:
    network = gm.Network(twice())
    metric = estimate_kronecker(network, network.initial, numbers().equal_batches(256))
    ones = torch.ones(network.n, dtype=torch.float64)
    truth = network.unravel(metric.mv(ones))
    for found in run(_measured_twice, 2, tmp_path):
        assert found.keys() == truth.keys()
        for name, image in found.items():
            torch.testing.assert_close(image, truth[name], rtol=1e-9, atol=1e-15)


def _kept(rank: int) -> int:
    """The number of activations of measurements that are not freed."""
    with parameters_without_memory():
        module = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3))
    seen = []
    with together() as mates:
        network = ShardedNetwork(module, mates or Team(dist.new_group()))
        x = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
        network.fill(lambda name, start, stop: torch.ones(stop - start, *network.shapes[name][1:]))
        network.probe([("numbers", x[:1])])
        for layer in network.module.children():
            layer.register_forward_hook(lambda _m, _x, out: seen.append(weakref.ref(out)))
        layout = Layout(network)
        gc.disable()
        measure_sharded(network, layout, gm.data.as_they_are(x), at_once=2)
    assert len(seen) >= 6
    return sum(one() is not None for one in seen)


def test_measuring_keeps_no_activations(tmp_path: Path) -> None:
    assert run(_kept, 2, tmp_path) == [0, 0]


def test_modules_without_memory_keep_their_buffers() -> None:
    with parameters_without_memory():
        layer = nn.BatchNorm1d(3)
    assert layer.weight.is_meta
    assert layer.running_var.tolist() == [1.0, 1.0, 1.0]
    assert not nn.Linear(2, 2).weight.is_meta

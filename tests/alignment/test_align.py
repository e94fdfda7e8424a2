from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn
from unit_networks import Grouped, Hard, Itself, TiedNormed

from geomerge import Network
from geomerge.alignment import align_weights
from geomerge.alignment.groups import find_groups, permute
from geomerge.alignment.weights import assignment
from geomerge.data import Inputs, Normalisation
from geomerge.errors import OptionError
from geomerge.networks.architectures import create_network


def batchnorm_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(20, 9), nn.ReLU(), nn.Linear(9, 3),
    )  # fmt: skip


def known(name: str, shape: tuple[int, ...]) -> Callable[[], nn.Module]:
    return lambda: create_network(name, shape, 10, seed=0)


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6), nn.ReLU(),
                                  nn.Linear(6, 3)), (5,)),
    "batchnorm cnn": (batchnorm_cnn, (2, 4, 4)),
    "residual": (TiedNormed, (2, 4, 4)),
    "itself": (Itself, (5,)),
    "grouped": (Grouped, (2, 4, 4)),
    "simple-mlp": (known("simple-mlp", (1, 8, 8)), (1, 8, 8)),
    "simple-cnn": (known("simple-cnn", (3, 16, 16)), (3, 16, 16)),
}  # fmt: skip
LARGE = {
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=10), (3, 32, 32)),
    "vgg11": (known("vgg11-cifar", (3, 32, 32)), (3, 32, 32)),
    "resnet18-gn": (known("resnet18-gn-cifar", (3, 32, 32)), (3, 32, 32)),
    "vit": (known("vit-cifar", (3, 32, 32)), (3, 32, 32)),
}
HARD = {"hard": (Hard, (2, 4, 4))}


def made(name: str, dtype: torch.dtype = torch.float64) -> tuple[Network, Inputs]:
    """A network, and inputs for it; every case has its own."""
    make, shape = {**CASES, **LARGE, **HARD}[name]
    torch.manual_seed(0)
    return Network(make().to(dtype)), Inputs(torch.randn(60, *shape), Normalisation((0.0,), (1.0,)))


def weights(network: Network, seed: int) -> Tensor:
    """Weights as if trained from another start, statistics included."""
    generator = torch.Generator().manual_seed(seed)
    w = network.initial.clone()
    for name, place in network.slices.items():
        size = place.stop - place.start
        part = w[place][torch.randperm(size, generator=generator)]
        noise = 0.2 * torch.randn(size, generator=generator).to(w)
        if name.endswith("running_var"):
            part = part + noise.abs()
        elif len(network.shapes[name]) == 1:  # biases, scales and means start alike
            part = part + noise
        w[place] = part
    return w


def permuted(network: Network, w: Tensor, inputs: Inputs, seed: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    w = w.clone()
    for group in find_groups(network, w, inputs.batch(slice(0, 2)))[0]:
        permute(group, group.random(generator), w)
    return w


def change(network: Network, one: Tensor, two: Tensor, inputs: Inputs) -> float:
    x = inputs.batch(slice(0, 8)).to(one.dtype)
    before, after = network.logits(one, x), network.logits(two, x)
    return float((after - before).norm() / before.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", [*CASES, *LARGE])
def test_another_order_of_units_is_the_same_function(name: str, dtype: torch.dtype) -> None:
    network, inputs = made(name, dtype)
    w = weights(network, 1)
    other = permuted(network, w, inputs)
    assert not torch.equal(w, other)
    assert change(network, w, other, inputs) < (1e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("method", ["weights", "activations"])
@pytest.mark.parametrize("name", [*CASES, "hard"])
def test_the_aligned_network_is_the_same_function(name: str, method: str) -> None:
    for dtype, most in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        network, inputs = made(name, dtype)
        a, b = weights(network, 1), weights(network, 2)
        aligned, found = align_weights(network, a, b, method=method, inputs=inputs)
        assert aligned.dtype == dtype
        assert change(network, b, aligned, inputs) < most
        assert torch.equal(found.permute(b), aligned)
        parameters = slice(network.n_parameters)
        assert found.before == pytest.approx(float((b - a)[parameters].norm()))
        assert found.after == pytest.approx(float((aligned - a)[parameters].norm()))
        if method == "weights":
            assert found.after <= found.before
        again, _ = align_weights(network, a, b, method=method, inputs=inputs)
        assert torch.equal(again, aligned)


@pytest.mark.parametrize("method", ["weights", "activations"])
@pytest.mark.parametrize("name", CASES)
def test_a_permuted_copy_comes_back_whole(name: str, method: str) -> None:
    network, inputs = made(name, torch.float32)
    a = weights(network, 1)
    b = permuted(network, a, inputs)
    assert not torch.equal(b, a)
    aligned, found = align_weights(network, a, b, method=method, inputs=inputs)
    assert torch.equal(aligned, a)
    assert found.after == 0 < found.before


@pytest.mark.parametrize("method", ["weights", "activations"])
@pytest.mark.parametrize("name", [*CASES, "hard", "vit"])
def test_a_network_is_aligned_with_itself(name: str, method: str) -> None:
    network, inputs = made(name)
    a = network.initial  # where many units have the same bias, scale and statistics
    aligned, found = align_weights(network, a, a.clone(), method=method, inputs=inputs)
    assert torch.equal(aligned, a)
    assert sum(found.moved.values()) == 0


@pytest.mark.slow
@pytest.mark.parametrize("method", ["weights", "activations"])
@pytest.mark.parametrize("name", LARGE)
def test_large_networks_are_aligned(name: str, method: str) -> None:
    network, inputs = made(name, torch.float32)
    a, b = weights(network, 1), weights(network, 2)
    aligned, found = align_weights(network, a, b, method=method, inputs=inputs)
    assert change(network, b, aligned, inputs) < 1e-5
    assert method == "activations" or found.after < found.before
    copy = permuted(network, a, inputs)
    assert torch.equal(align_weights(network, a, copy, method=method, inputs=inputs)[0], a)


def test_sums_tie_layers_and_norms_follow() -> None:
    network, inputs = made("residual")
    groups, fixed = find_groups(network, network.initial, inputs.batch(slice(0, 2)))
    assert [group.units.layer for group in groups] == ["stem", "inner", "hidden"]
    assert set(groups[0].units.layers) == {"stem", "outer", "depthwise"}
    tensors = {part.tensor for part in groups[0].units.parts}
    assert {"norm.weight", "norm.running_var", "outer_norm.running_mean"} <= tensors
    assert fixed == {"head": "they are the network's outputs"}


def test_what_cannot_be_followed_stays() -> None:
    network, inputs = made("hard")
    groups, fixed = find_groups(network, network.initial, inputs.batch(slice(0, 2)))
    names = {name for group in groups for name in group.units.layers}
    assert {"grouped", "mixed", "hidden", "head"} <= set(fixed)
    assert not names & set(fixed)
    assert "in groups" in fixed["grouped"]


def test_units_change_places_within_the_groups_of_a_norm() -> None:
    network, inputs = made("grouped")
    (group,), _ = find_groups(network, network.initial, inputs.batch(slice(0, 2)))
    assert (group.count, group.blocks) == (12, 3)
    similarity = torch.randn(6, 6, dtype=torch.float64)
    allowed = [
        order
        for order in itertools.permutations(range(6))
        if {k // 3 for k in order[:3]} in ({0}, {1})
    ]
    assert len(allowed) == 2 * 6 * 6
    best = max(float(similarity[range(6), order].sum()) for order in allowed)
    order = assignment(similarity, 2)
    assert tuple(order.tolist()) in allowed
    assert float(similarity[range(6), order].sum()) == pytest.approx(best)


def test_the_units_that_moved_are_counted() -> None:
    network, inputs = made("mlp")
    a = weights(network, 1)
    (first, _), _ = find_groups(network, a, inputs.batch(slice(0, 2)))
    b = a.clone()
    permute(first, torch.tensor([1, 0, 2, 3, 4, 6, 7, 5]), b)
    _, found = align_weights(network, a, b, inputs=inputs)
    assert found.groups == {"0": 8, "2": 6}
    assert found.moved == {"0": 5, "2": 0}


def test_weight_matching_finds_the_nearest_order() -> None:
    network = Network(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double())
    a, b = weights(network, 1), weights(network, 2)
    x = torch.randn(2, 4, dtype=torch.float64)
    (group,), _ = find_groups(network, a, x)
    distances = []
    for order in itertools.permutations(range(5)):
        w = b.clone()
        permute(group, torch.tensor(order), w)
        distances.append(float((w - a).norm()))
    _, found = align_weights(network, a, b, example=x)
    assert found.after == pytest.approx(min(distances), abs=1e-12)


def test_activation_matching_finds_the_most_correlated_order() -> None:
    network = Network(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double())
    a, b = weights(network, 1), weights(network, 2)
    inputs = Inputs(torch.randn(300, 4), Normalisation((0.0,), (1.0,)))
    aligned, _ = align_weights(network, a, b, method="activations", inputs=inputs)

    def hidden(w: Tensor) -> Tensor:
        tensors = network.unravel(w)
        return inputs.batch(slice(None)).double() @ tensors["0.weight"].T + tensors["0.bias"]

    correlation = torch.corrcoef(torch.cat([hidden(a), hidden(b)], 1).T)[:5, 5:]
    best = max(
        float(correlation[range(5), order].sum()) for order in itertools.permutations(range(5))
    )
    reached = torch.corrcoef(torch.cat([hidden(a), hidden(aligned)], 1).T)[:5, 5:]
    assert float(reached.trace()) == pytest.approx(best)


def test_units_that_never_change_are_no_obstacle() -> None:
    network, inputs = made("mlp")
    a, b = weights(network, 1), weights(network, 2)
    network.unravel(b)["0.weight"][:3] = 0
    aligned, _ = align_weights(network, a, b, method="activations", inputs=inputs)
    assert change(network, b, aligned, inputs) < 1e-12


def test_what_is_missing_is_said() -> None:
    network, inputs = made("mlp")
    w = network.initial
    with pytest.raises(OptionError, match="expected inputs to align units by weights"):
        align_weights(network, w, w)
    with pytest.raises(OptionError, match="expected inputs to align units by activations"):
        align_weights(network, w, w, method="activations", example=inputs.batch(slice(0, 2)))
    with pytest.raises(OptionError, match="unknown alignment 'weight'; did you mean 'weights'"):
        align_weights(network, w, w, method="weight", inputs=inputs)
    with pytest.raises(OptionError, match="torch-pruning can trace"):
        align_weights(network, w, w, example=torch.randn(2, 3))

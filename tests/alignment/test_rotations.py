"""Rotations of residual streams and attention heads: functions kept, copies found again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import geomerge as gm
from geomerge.alignment import find_stream, rotate_weights
from geomerge.data import as_they_are
from geomerge.errors import OptionError, Problems
from geomerge.merging.auto_align import align_where_it_helps
from geomerge.merging.prepare import PreparedMerge, prepare
from geomerge.networks.architectures import create_network
from geomerge.networks.network import Network

X = torch.randn(60, 2, 8, 8, generator=torch.Generator().manual_seed(0))


def transformer(seed: int, classes: int = 3) -> nn.Module:
    """Return a transformer with scales, shifts and biases away from their initial values."""
    module = create_network("vit-cifar", (2, 8, 8), classes, seed=seed)
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p += 0.05 * torch.randn_like(p)
    return module.eval()


def rotated(network: Network, *weights: Tensor) -> list[Tensor]:
    stream = find_stream(network.module)
    assert stream is not None
    return rotate_weights(network, stream, weights, as_they_are(X))


def near(a: Tensor, b: Tensor, most: float) -> bool:
    return bool((a - b).norm() <= most * b.norm())


@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_rotated_networks_compute_the_same(dtype: torch.dtype, most: float) -> None:
    network = Network(transformer(0).to(dtype))
    given = [Network(transformer(seed).to(dtype)).initial for seed in (1, 2, 3)]
    kept = [w.clone() for w in given]
    found = rotated(network, *given)
    x = X.to(dtype)
    for old, new, copy in zip(given, found, kept, strict=True):
        assert torch.equal(old, copy)
        assert new.dtype == dtype
        assert near(network.logits(new, x), network.logits(old, x), most)
        parts = network.unravel(new)
        for name in ("norm", "layers.2.norm1", "layers.3.norm2"):
            assert torch.equal(parts[f"{name}.weight"], torch.ones_like(parts[f"{name}.weight"]))
            assert not parts[f"{name}.bias"].any()
    for old, new in zip(given[1:], found[1:], strict=True):
        assert (new - found[0]).norm() < (old - given[0]).norm()


def test_a_rotated_copy_comes_back() -> None:
    network = Network(transformer(0).double())
    other, a = (Network(transformer(seed).double()).initial for seed in (1, 2))
    copy = rotated(network, other, a)[1]  # the function of a, in the basis of another network
    plain, back = rotated(network, a, copy)
    assert not near(copy, plain, 0.1)
    assert near(back, plain, 1e-9)


def prepared(pair: list[gm.Expert], **options: Any) -> PreparedMerge:
    found = prepare(pair, gm.MergeOptions(**options), Problems(strict=True))
    assert found is not None
    return found


@pytest.mark.parametrize("head", ["separate", "offset"])
def test_rotated_experts_of_a_merge_keep_their_own_outputs(head: str) -> None:
    modules = [transformer(1), transformer(2, classes=4)]
    found = prepared(
        [gm.Expert.from_module(module, inputs=X) for module in modules],
        align="rotations", head=head,
    )  # fmt: skip
    assert found.alignments["b"].method == "rotations"
    assert any("rotated before" in note for note in found.notes)
    for expert, module in zip(found.space, modules, strict=True):
        own = found.heads.rows[expert.name]
        assert near(found.space.network.logits(expert.weights, X)[:, own], module(X), 1e-5)
    # The rows of the other's classes belong to the basis of the other.
    first, second = (found.space.network.unravel(e.weights) for e in found.space)
    assert torch.equal(first["head.weight"], second["head.weight"])


def test_rotations_are_chosen_where_the_mean_is_better() -> None:
    network, expert = Network(transformer(0)), gm.Expert.from_module(transformer(2), inputs=X)
    other = gm.Expert.from_module(transformer(1), inputs=X)
    copy = rotated(network, other.weights, expert.weights)[1]
    pair = [expert, gm.Expert.from_module(network.module_at(copy), inputs=X)]
    found = align_where_it_helps(prepared(pair))
    assert any("`align` rotations was chosen" in note for note in found.notes)
    a, b = (e.weights for e in found.space)
    assert near(b, a, 1e-4)


def test_networks_that_cannot_be_rotated_are_refused() -> None:
    module = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    pair = [gm.Expert.from_module(module, inputs=X) for _ in range(2)]
    with pytest.raises(OptionError, match="of the make vit-cifar"):
        prepared(pair, align="rotations")
    known = [gm.Expert.from_module(transformer(k), inputs=X) for k in range(2)]
    with pytest.raises(OptionError, match="`keep_zeros` cannot be kept"):
        prepared(known, align="rotations", keep_zeros=True)
    blind = replace(known[1].with_sketch(inputs=5), inputs=None)
    with pytest.raises(OptionError, match=r"need inputs of every network.* none for b"):
        prepared([known[0], blind], align="rotations")


def test_sketches_are_left_out() -> None:
    known = [gm.Expert.from_module(transformer(k), inputs=X).with_sketch(inputs=5) for k in (0, 1)]
    found = prepared(known, align="rotations")
    assert [expert.sketch for expert in found.space] == [None, None]
    assert any("sketches do not follow rotations" in note for note in found.notes)

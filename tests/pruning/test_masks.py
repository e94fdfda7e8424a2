from __future__ import annotations

from itertools import pairwise, product

import pytest
import torch
from torch import nn

from geomerge import Network
from geomerge.errors import OptionError
from geomerge.pruning.masks import (
    SparsityPattern,
    parse_nm,
    prunable,
    removable,
    sparsity,
    weakest,
    zeros,
)


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 1),
        nn.Flatten(), nn.LayerNorm(32), nn.Linear(32, 3),
    )  # fmt: skip
    return Network(module.double())


@pytest.fixture
def scores(network: Network) -> torch.Tensor:
    return torch.rand(network.n, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def counts(network: Network, gone: torch.Tensor) -> dict[str, int]:
    return {name: int(gone[place].sum()) for name, place in prunable(network).items()}


def test_weights_of_layers_may_go_and_nothing_else(network: Network) -> None:
    assert set(prunable(network)) == {"0.weight", "3.weight", "6.weight"}
    assert all(place == network.slices[name] for name, place in prunable(network).items())
    alone = Network(nn.Linear(3, 2))
    assert prunable(alone) == {"weight": slice(0, 6)}
    shared = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    shared[1].weight = shared[0].weight
    assert prunable(Network(shared)) == {"0.weight": slice(0, 9)}


def test_sparsity_is_the_share_of_exact_zeros(network: Network) -> None:
    places = prunable(network)
    w = torch.full((network.n,), 1e-300, dtype=torch.float64)
    w[network.slices["1.weight"]] = 0  # a scale of a norm does not count
    assert sparsity(w, places) == 0
    w[places["3.weight"]] = 0
    assert sparsity(w, places) == 48 / (216 + 48 + 96)
    assert torch.equal(
        zeros(w, places).nonzero()[:, 0], torch.arange(network.n)[places["3.weight"]]
    )


@pytest.mark.parametrize("share", [0.1, 0.37, 0.5, 0.95])
def test_the_lowest_of_all_layers_go(network: Network, scores: torch.Tensor, share: float) -> None:
    places = prunable(network)
    gone = removable(scores, network, places, SparsityPattern(share))
    may = torch.zeros(network.n, dtype=torch.bool)
    for place in places.values():
        may[place] = True
    assert not (gone & ~may).any()
    assert int(gone.sum()) == round(share * int(may.sum()))
    assert scores[gone].max() <= scores[may & ~gone].min()


@pytest.mark.parametrize("share", [0.1, 0.37, 0.5, 0.95])
def test_every_layer_gives_the_same_share(
    network: Network, scores: torch.Tensor, share: float
) -> None:
    places = prunable(network)
    scores[places["6.weight"]] += 10  # the rule for all layers would spare this one
    gone = removable(scores, network, places, SparsityPattern(share, per_layer=True))
    assert int(gone.sum()) == sum(counts(network, gone).values())
    for place in places.values():
        size = place.stop - place.start
        assert int(gone[place].sum()) == round(share * size)
        assert scores[place][gone[place]].max() <= scores[place][~gone[place]].min()


@pytest.mark.parametrize("nm", [(2, 4), (1, 2), (1, 4)])
def test_n_of_m_neighbours_along_the_inputs_stay(
    network: Network, scores: torch.Tensor, nm: tuple[int, int]
) -> None:
    n, m = nm
    gone = removable(scores, network, prunable(network), SparsityPattern(0.9, nm=nm))
    for name, place in prunable(network).items():
        shape = network.shapes[name]
        left, of = (~gone[place]).view(shape), scores[place].view(shape)
        if shape[1] % m:  # six channels are no groups of four
            assert left.all()
            continue
        for row, *at in product(*(range(k) for k in (shape[0], *shape[2:]))):
            along = (row, slice(None), *at)
            for start in range(0, shape[1], m):
                stays, score = left[along][start : start + m], of[along][start : start + m]
                assert int(stays.sum()) == n
                assert score[stays].min() > score[~stays].max()
    assert int(gone.sum()) == sum(counts(network, gone).values())


def test_equal_scores_go_in_their_order(network: Network) -> None:
    places = prunable(network)
    ones = torch.ones(network.n, dtype=torch.float64)
    gone = removable(ones, network, places, SparsityPattern(0.25))
    first = torch.cat([torch.arange(p.start, p.stop) for p in places.values()])[:90]
    assert torch.equal(gone.nonzero()[:, 0], first)
    gone = removable(ones, network, places, SparsityPattern(0.25, per_layer=True))
    for place in places.values():
        size = (place.stop - place.start) // 4
        assert gone[place][:size].all()
        assert not gone[place][size:].any()
    gone = removable(ones, network, places, SparsityPattern(0.25, nm=(1, 4)))
    rows = gone[places["6.weight"]].view(3, 8, 4)
    assert torch.equal(rows, torch.tensor([True, True, True, False]).expand(3, 8, 4))


@pytest.mark.parametrize("per_layer", [False, True])
def test_masks_of_growing_shares_are_nested(
    network: Network, scores: torch.Tensor, per_layer: bool
) -> None:
    scores = (8 * scores).round()  # with many ties
    masks = [
        removable(scores, network, prunable(network), SparsityPattern(share, per_layer))
        for share in (0.1, 0.2, 0.55, 0.9)
    ]
    for small, large in pairwise(masks):
        assert not (small & ~large).any()
        assert small.sum() < large.sum()


def test_the_weakest_candidates(scores: torch.Tensor) -> None:
    candidates = scores > 0.5
    found = weakest(scores, candidates, 11)
    assert int(found.sum()) == 11
    assert not (found & ~candidates).any()
    assert scores[found].max() <= scores[candidates & ~found].min()
    assert torch.equal(weakest(scores, candidates, 10**6), candidates)
    assert not weakest(scores, candidates, 0).any()


def test_patterns_in_words() -> None:
    assert parse_nm("2:4") == (2, 4)
    assert parse_nm("1:16") == (1, 16)
    for wrong in ("", "4:2", "4:4", "0:4", "2:4:8", "-2:4", "2.0:4", "2/4", " 2:4"):
        with pytest.raises(OptionError, match=f"`nm` to be N:M.*got {wrong!r}"):
            parse_nm(wrong)

from __future__ import annotations

import copy
from itertools import pairwise, product

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from geomerge import KroneckerMetric, Network
from geomerge.errors import OptionError
from geomerge.metrics import EuclideanMetric
from geomerge.metrics.kronecker.estimate import estimate_kronecker
from geomerge.metrics.kronecker.layer import KroneckerLayer
from geomerge.networks.batches import Batch
from geomerge.pruning.masks import (
    SparsityPattern,
    parse_nm,
    prunable,
    prune_form,
    removable,
    saliency,
    sparsity,
    weakest,
    zeros,
)
from geomerge.testing import dense_kronecker


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


Case = tuple[Network, Batch]


DAMPING = 1e-2


def measured(case: Case, rank_a: int = 100, rank_b: int = 100) -> KroneckerMetric:
    network, x = case
    metric = estimate_kronecker(network, network.initial, [x], "hellinger")
    layers = tuple(
        KroneckerLayer(
            one.name, one.weight, one.bias, one.inputs.truncated(rank_a),
            one.outputs.truncated(rank_b),
        )
        for one in metric.layers
    )  # fmt: skip
    return KroneckerMetric(metric.n, layers, metric.rest, metric.diagonal, metric.diagonal_only)


@pytest.mark.parametrize("ranks", [(100, 100), (3, 100), (100, 2), (2, 1)])
def test_the_diagonal_is_that_of_the_dense_function(case: Case, ranks: tuple[int, int]) -> None:
    metric = measured(case, *ranks)
    g = dense_kronecker(metric)
    values, vectors = torch.linalg.eigh(g)
    values = values.clamp(min=0)
    for function in (lambda s: s, lambda s: 1 / (s + DAMPING), lambda s: (s + DAMPING).sqrt()):
        truth = ((vectors * function(values)) @ vectors.T).diagonal()
        torch.testing.assert_close(metric.diagonal_of(function), truth, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("ranks", [(100, 100), (3, 2)])
def test_obs_is_what_a_weight_costs_where_all_others_make_up_for_it(
    case: Case, ranks: tuple[int, int]
) -> None:
    network, _ = case
    metric = measured(case, *ranks)
    h = dense_kronecker(metric) + DAMPING * torch.eye(network.n, dtype=torch.float64)
    w = network.initial
    scores = saliency(w, metric, "obs", DAMPING)
    formula = w.square() / (2 * torch.linalg.inv(h).diagonal())
    torch.testing.assert_close(scores, formula, rtol=1e-8, atol=1e-12)
    for i in range(0, network.n, max(1, network.n // 7)):  # by least squares, one at a time
        others = torch.arange(network.n) != i
        d = -w[i]
        x = torch.linalg.solve(h[others][:, others], -h[others, i] * d)
        move = torch.zeros_like(w)
        move[i], move[others] = d, x
        assert float(move @ h @ move) / 2 == pytest.approx(float(scores[i]), rel=1e-7, abs=1e-12)


def test_obd_is_what_a_weight_costs_where_nothing_else_moves(case: Case) -> None:
    network, _ = case
    metric = measured(case)
    g = dense_kronecker(metric)
    w = network.initial
    scores = saliency(w, metric, "obd", DAMPING)
    moves = torch.diag(-w)
    truth = torch.einsum("ki,ij,kj->k", moves, g, moves) / 2
    torch.testing.assert_close(scores, truth, rtol=1e-9, atol=1e-14)
    # With compensation it costs no more, but for what the damping adds.
    bound = scores + DAMPING * w.square() / 2
    assert (saliency(w, metric, "obs", DAMPING) <= bound * (1 + 1e-9) + 1e-15).all()


def test_the_euclidean_metric_orders_by_magnitude(case: Case) -> None:
    network, _ = case
    w = network.initial
    order = w.abs().argsort(stable=True)
    for kind in ("obs", "obd", "magnitude"):
        scores = saliency(w, EuclideanMetric(), kind, DAMPING)
        assert torch.equal(scores.argsort(stable=True), order)
    scores = saliency(w, measured(case), "magnitude", DAMPING)
    assert torch.equal(scores, w.square())


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    ).double()


def random_mask(net: Network) -> torch.Tensor:
    kept = torch.ones(net.n, dtype=torch.bool)
    for name in ("0.weight", "4.weight", "4.bias"):
        place = net.slices[name]
        kept[place] = torch.rand(place.stop - place.start) > 0.4
    return kept


@pytest.mark.parametrize("identity", [True, False])
def test_plain_modules_load_it(identity: bool) -> None:
    plain = small_net()
    net = Network(copy.deepcopy(plain))
    kept = random_mask(net)
    form = prune_form(net, net.initial, kept)
    for layer, kind in ((plain[0], "weight"), (plain[4], "weight"), (plain[4], "bias")):
        if identity:
            prune.identity(layer, kind)
        else:
            prune.custom_from_mask(layer, kind, torch.ones_like(getattr(layer, kind)))
    plain.load_state_dict(form, strict=True)
    x = torch.randn(5, 1, 4, 4, dtype=torch.float64)
    assert torch.equal(plain.eval()(x), net.logits(net.initial * kept, x))
    prune.remove(plain[0], "weight")
    assert torch.equal(plain.state_dict()["0.weight"] != 0, net.unravel(kept)["0.weight"])


def test_without_pruned_weights_it_is_the_state_dict() -> None:
    net = Network(small_net())
    form = prune_form(net, net.initial, torch.ones(net.n, dtype=torch.bool))
    expected = net.state_dict(net.initial)
    assert list(form) == list(expected)
    assert all(torch.equal(form[k], expected[k]) for k in form)


def test_masks_that_cannot_be_are_refused() -> None:
    net = Network(small_net())
    kept = random_mask(net)
    for wrong in (kept.float(), kept[1:]):
        with pytest.raises(OptionError, match=f"a mask of {net.n} bools"):
            prune_form(net, net.initial, wrong)
    kept[net.slices["1.running_mean"]] = False
    with pytest.raises(OptionError, match="running statistics"):
        prune_form(net, net.initial, kept)

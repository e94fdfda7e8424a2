"""Scores of language models against transformers: without padding, compared by shares."""

from __future__ import annotations

import math
from typing import Any

import model_folders
import pytest
import torch
from torch import Tensor

import geomerge as gm
from geomerge.errors import CheckpointError, TaskError
from geomerge.evaluation.drift import Probe, mean_kl
from geomerge.evaluation.measures import drop, perplexity_of, unit, worded
from geomerge.evaluation.pick import Score, parse_pick
from geomerge.evaluation.plausibility import at_chance
from geomerge.metrics import MetricOptions, measure_metric
from geomerge.metrics.kronecker.estimate import estimate_kronecker
from geomerge.networks.batches import Batch
from geomerge.testing.dense import dense_metric
from geomerge.walks.objectives import KLToTeacher

TEXTS, LENGTH = 20, 8


def texts(padding: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    """Texts of several lengths, with columns of padding, and the tokens that follow."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 15, (TEXTS, LENGTH), generator=generator)
    lengths = torch.arange(TEXTS) % 3 + LENGTH - 2
    mask = (torch.arange(LENGTH) < lengths[:, None]).long()
    labels = torch.full_like(ids, -100)
    labels[:, :-1] = torch.where(mask[:, 1:] == 1, ids[:, 1:], -100)
    pad: Any = torch.nn.functional.pad
    x = {"input_ids": pad(ids, (0, padding)), "attention_mask": pad(mask, (0, padding))}
    return x, pad(labels, (0, padding), value=-100)


def expert(padding: int = 0) -> gm.Expert:
    task = gm.Task.from_tensors(*texts(padding), test=texts(padding), select=texts(padding))
    return gm.Expert.from_module(model_folders.language_model(), task)


def test_the_loss_is_that_of_transformers() -> None:
    found = expert()
    x, labels = texts()
    with torch.no_grad():
        logits = model_folders.language_model()(**x).logits
    known = labels != -100
    expected = torch.nn.functional.cross_entropy(logits[known], labels[known])
    assert found.loss() == pytest.approx(float(expected), rel=1e-5)
    assert perplexity_of(found.score()) == pytest.approx(math.exp(expected), rel=1e-5)
    with pytest.raises(TaskError, match="is measured by loss"):
        found.accuracy()


def test_padding_never_counts() -> None:
    one, other = expert(), expert(padding=3)
    assert one.loss() == pytest.approx(other.loss(), rel=1e-5)
    at = one.weights
    w = at + 0.1 * torch.randn(one.network.n, generator=torch.Generator().manual_seed(2))
    found = []
    for e in (one, other):
        assert e.task is not None
        inputs, network = e.task.select.inputs, e.network

        def teacher(x: Batch, network: gm.Network = network) -> Tensor:
            return network.logits(at, x).log_softmax(dim=1)

        metric = measure_metric(network, at, inputs, MetricOptions("kronecker"))
        found.append([
            Probe(network, inputs, "hellinger")(at, w),
            mean_kl(network, at, w, inputs),
            KLToTeacher(network, teacher, inputs, 16, 0)(w)[0],
            metric.inner(w - at, w - at),
        ])  # fmt: skip
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    plain, padded = (one.network.logits(at, texts(columns)[0]) for columns in (0, 3))
    assert torch.allclose(plain, padded, atol=1e-5)
    assert len(plain) == int(texts()[0]["attention_mask"].sum())


def test_the_diagonal_of_an_embedding_tied_to_the_head_is_exact_on_average() -> None:
    module = model_folders.language_model(vocab_size=6, n_embd=4).double()
    network = gm.Network(module)
    x = {"input_ids": torch.randint(0, 6, (5, 4), generator=torch.Generator().manual_seed(3))}
    place = network.slices["transformer.wte.weight"]
    tokens = 4  # of each text, over which the dense metric has no mean
    dense = dense_metric(network, network.initial, x, "hellinger").diagonal()[place] / tokens
    found = []
    for seed in range(40):
        metric = estimate_kronecker(network, network.initial, [x], seed=seed, sign_vectors=None)
        assert metric.one_by_one == ()
        diagonal = metric.diagonal_of(lambda values: values)
        assert diagonal is not None
        found.append(diagonal[place])
    assert float((torch.stack(found).mean(0) - dense).norm() / dense.norm()) < 0.1


def test_rules_compare_shares_of_the_experts_own() -> None:
    experts = {"a": 1 / 20, "b": 1 / 50}
    near = Score({"a": 1 / 22, "b": 1 / 55}, as_shares=True)
    far = Score({"a": 1 / 20, "b": 1 / 70}, as_shares=True)
    for name in ("max-min", "balanced"):
        rule = parse_pick(name, experts)
        assert rule.value(near) > rule.value(far)
    assert parse_pick("max-min", experts).value(near) == pytest.approx(20 / 22)
    assert drop(1 / 20, 1 / 22, "loss") == pytest.approx(0.1)


def test_chance_is_a_text_whose_tokens_come_as_often_as_here() -> None:
    found = expert()
    assert found.task is not None
    assert at_chance(1 / 15, found.task.select)
    assert not at_chance(1 / 2, found.task.select)


def test_words_of_scores() -> None:
    assert worded(0.5, "accuracy") == "50.0 %"
    assert worded(0.05, "loss") == "perplexity 20.0"
    assert unit(["loss", "accuracy"]) == "accuracy, % or perplexity"


def test_logits_at_positions_that_are_no_tokens_are_refused() -> None:
    network = gm.Network(torch.nn.Linear(3, 2))
    with pytest.raises(CheckpointError, match="logits of shape"):
        network.logits(network.initial, torch.zeros(4, 5, 3))

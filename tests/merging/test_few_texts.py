"""Joint walks on few texts: tokens replaced in each batch, targets of the teacher for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import model_folders
import pytest
import torch

import geomerge as gm
from geomerge.data import Inputs
from geomerge.data.inputs import as_they_are
from geomerge.expert import Expert
from geomerge.merging.few_texts import FEW, joined_texts, token_replacement
from geomerge.merging.presets.joint import HELD_DAMPINGS


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Expert]]:
    """A base, and two fine-tunes with sketches of more texts than they bring."""
    base, sketched = model_folders.sketched_fine_tunes(tmp_path_factory.mktemp("few"))
    experts = []
    for expert in sketched:
        assert expert.inputs is not None
        experts.append(replace(expert, task=None, inputs=expert.inputs.first(16)))
    return base, experts


def test_tokens_of_a_few_texts_are_replaced_by_those_that_the_sketch_saw(
    tuned: tuple[Path, list[Expert]],
) -> None:
    expert = tuned[1][1]  # of the words of `count`, and none of `colour`
    assert expert.inputs is not None
    change = token_replacement(expert, expert.inputs, seed=0)
    assert change is not None
    known = {5 + model_folders.WORDS.index(w) for w in ("red", "blue", "green")}
    drawn = set()
    for number in range(20):
        x = change(expert.inputs.batch(slice(None)), number)
        assert isinstance(x, dict)
        drawn |= set(x["input_ids"].flatten().tolist())
    assert not drawn & known
    even = token_replacement(replace(expert, sketch=None), expert.inputs, seed=0)
    assert even is not None
    x = even(expert.inputs.batch(slice(None)), 0)
    assert isinstance(x, dict)
    assert set(x["input_ids"].flatten().tolist()) & known


def test_teachers_answer_for_the_texts_of_all_networks(tuned: tuple[Path, list[Expert]]) -> None:
    base, experts = tuned
    merged = gm.merge(experts, base=base, head="separate", preset="joint", steps=2)
    first, second = merged.space.experts
    walker = merged.preset.walker
    known = {5 + model_folders.WORDS.index(w) for w in ("red", "blue", "green")}
    for others, seen in (([], False), ([first], True)):
        direction = walker.direction(second, others=others)
        drawn = [direction.draw()[0] for _ in range(10)]
        words = {t for x in drawn if isinstance(x, dict) for t in x["input_ids"].unique().tolist()}
        assert bool(words & known) == seen
        assert direction(second.weights)[0] == pytest.approx(0, abs=1e-6)


def test_texts_of_several_lengths_are_joined_and_padded() -> None:
    def texts(count: int, length: int) -> Inputs:
        ids = torch.full((count, length), length)
        return as_they_are({"input_ids": ids, "attention_mask": torch.ones_like(ids)})

    joined = joined_texts(texts(2, 3), [texts(1, 5)], 0)
    assert len(joined) == 3
    x = joined.batch(slice(0, 3))
    assert isinstance(x, dict)
    assert x["attention_mask"].sum(dim=1).tolist() == [3, 3, 5]
    other = as_they_are({"input_ids": torch.ones(4, 2, dtype=torch.long)})
    assert len(joined_texts(texts(2, 3), [other], 0)) == 2


def test_a_teacher_of_few_texts_sees_no_more_of_another_network_than_its_own() -> None:
    few, many = (as_they_are(words(count, token)) for count, token in ((5, 1), (500, 2)))
    ids = joined_texts(few, [many], 0).raw
    assert isinstance(ids, dict)
    assert ids["input_ids"][:, 0].bincount().tolist() == [0, 5, 5]


def words(count: int, token: int) -> dict[str, torch.Tensor]:
    ids = torch.full((count, 4), token)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def test_many_texts_and_other_inputs_stay_as_they_are(tuned: tuple[Path, list[Expert]]) -> None:
    expert = tuned[1][0]
    assert expert.inputs is not None
    many = expert.inputs.take(torch.zeros(FEW + 1, dtype=torch.long))
    assert token_replacement(expert, many, 0) is None
    assert token_replacement(replace(expert, source="network"), expert.inputs, 0) is None
    language = replace(expert.inputs, at_once=4)
    assert token_replacement(expert, language, 0) is None


def test_a_walk_on_a_few_texts_pulls_nowhere_at_its_teacher_and_goes_on_where_it_was(
    tuned: tuple[Path, list[Expert]],
) -> None:
    base, experts = tuned
    merged = gm.merge(experts, base=base, head="separate", preset="joint", steps=2)
    assert merged.preset.stages[0].candidates == HELD_DAMPINGS
    expert = merged.space.experts[0]
    walker = merged.preset.walker
    loss, v = walker.direction(expert)(expert.weights)
    assert loss == pytest.approx(0, abs=1e-6)
    assert float(v.norm()) < 1e-4
    w = merged.space.middle()
    whole, later = walker.direction(expert), walker.direction(expert)
    losses = [whole(w)[0] for _ in range(3)]
    later.skip(2)
    assert later(w)[0] == losses[2]
    assert len(set(losses)) == 3

"""Replacement of tokens: special ones stay, draws follow the weights, same seed same texts."""

from __future__ import annotations

import torch

from geomerge.data.replaced_tokens import ReplacedTokens


def texts() -> dict[str, torch.Tensor]:
    """Return texts of a first and a last special token, 0 and 1, some with padding, 2."""
    ids = torch.randint(3, 50, (200, 12), generator=torch.Generator().manual_seed(0))
    ids[:, 0] = 0
    mask = torch.ones_like(ids)
    for k in range(200):
        end = 4 + k % 8
        ids[k, end], ids[k, end + 1 :] = 1, 2
        mask[k, end + 1 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def test_special_tokens_and_padding_stay_and_none_is_drawn() -> None:
    x = texts()
    changed = ReplacedTokens(torch.ones(50), [0, 1, 2], seed=0)(x, 0)
    assert isinstance(changed, dict)
    before, after = x["input_ids"], changed["input_ids"]
    kept = before < 3
    assert torch.equal(before[kept], after[kept])
    assert int(after[~kept].min()) >= 3
    assert changed["attention_mask"] is x["attention_mask"]
    share = float((before != after)[~kept].float().mean())
    assert 0.15 < share < 0.25  # two thirds of 0.3, less those that are drawn again
    assert 0.2 < float((before == after).all(dim=1).float().mean()) < 0.55


def test_tokens_are_drawn_by_their_weights() -> None:
    weights = torch.zeros(50)
    weights[[7, 9]] = torch.tensor([1.0, 3.0])
    x = texts()
    after = ReplacedTokens(weights, [0, 1, 2], seed=0)(x, 0)
    assert isinstance(after, dict)
    new = after["input_ids"][after["input_ids"] != x["input_ids"]]
    assert set(new.tolist()) == {7, 9}
    assert 0.65 < float((new == 9).float().mean()) < 0.85


def test_draws_follow_the_number_of_the_batch_alone() -> None:
    x, draw = texts(), ReplacedTokens(torch.ones(50), [0, 1, 2], seed=0)
    first, second = draw(x, 0), draw(x, 1)
    assert isinstance(first, dict)
    assert isinstance(second, dict)
    assert not torch.equal(first["input_ids"], second["input_ids"])
    again = ReplacedTokens(torch.ones(50), [0, 1, 2], seed=0)(x, 1)
    assert isinstance(again, dict)
    assert torch.equal(second["input_ids"], again["input_ids"])

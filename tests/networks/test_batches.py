from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from geomerge.networks.batches import (
    Batch,
    as_batch,
    batch_size,
    cast_floats,
    concat,
    drawn_like,
    interleave,
    is_plain,
    leaves,
    pass_to,
    rows,
    shape_of,
    single,
    split,
    take,
)

TENSOR = torch.arange(12.0).view(6, 2)
BATCHES: dict[str, Batch] = {
    "tensor": TENSOR,
    "tuple": (TENSOR, torch.arange(6)),
    "mapping": {"tokens": torch.arange(6), "mask": torch.ones(6, 3, dtype=torch.bool)},
}


def same(one: Batch, two: Batch) -> bool:
    pairs = zip(leaves(one), leaves(two), strict=True)
    return type(one) is type(two) and all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("x", BATCHES.values(), ids=BATCHES)
def test_parts_make_the_whole(x: Batch) -> None:
    assert batch_size(x) == 6
    assert [batch_size(part) for part in split(x, 4)] == [4, 2]
    assert same(concat(split(x, 4)), x)
    assert same(concat([single(take(x, i)) for i in range(6)]), x)
    assert same(take(interleave([x, x]), torch.arange(0, 12, 2)), x)


@pytest.mark.parametrize("x", BATCHES.values(), ids=BATCHES)
def test_integers_stay_as_they_are(x: Batch) -> None:
    generator = torch.Generator().manual_seed(0)
    for other in (cast_floats(x, TENSOR.double()), drawn_like(x, generator)):
        for before, after in zip(leaves(x), leaves(other), strict=True):
            if not before.is_floating_point():
                assert torch.equal(before, after)
    assert leaves(cast_floats(TENSOR, TENSOR.double()))[0].dtype == torch.float64


def test_shapes_tell_batches_apart() -> None:
    shapes = [shape_of(x) for x in BATCHES.values()]
    assert shapes == [(2,), ((2,), ()), (("tokens", ()), ("mask", (3,)))]
    assert len(set(shapes)) == 3
    assert [is_plain(shape) for shape in shapes] == [True, False, False]


def test_a_tuple_is_passed_by_position_and_a_mapping_by_name() -> None:
    class Difference(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x - y

    one, two = torch.ones(3), torch.zeros(3)
    assert torch.equal(pass_to(Difference(), (one, two)), one)
    assert torch.equal(pass_to(Difference(), {"y": one, "x": two}), -one)


def test_arrays_and_lists_become_batches_and_other_things_do_not() -> None:
    assert as_batch(np.ones((3, 2), dtype=np.float32)) is not None
    assert isinstance(as_batch([TENSOR, TENSOR]), tuple)
    assert isinstance(as_batch({"x": TENSOR}), dict)
    for wrong in ("text", {"x": "text"}, [TENSOR, "text"], [], {}, 3):
        assert as_batch(wrong) is None


def test_rows_are_those_of_indexing_in_the_same_memory_format() -> None:
    plain = torch.arange(6 * 3 * 4 * 4, dtype=torch.uint8).view(6, 3, 4, 4)
    for x in (plain, plain.to(memory_format=torch.channels_last), plain[:, 1:]):
        for index in (torch.tensor([4, 0, 4]), torch.arange(6) > 2, slice(1, 5)):
            found, expected = rows(x, index), x[index]
            assert torch.equal(found, expected)
            assert found.stride() == expected.stride()

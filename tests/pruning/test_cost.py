from __future__ import annotations

from geomerge.pruning.cost import Cost
from geomerge.walks.state import WalkState


def test_passes_add_up_and_are_counted_in_epochs() -> None:
    cost = Cost()
    cost.add(50)
    cost.add(10)
    assert cost.passes == 60
    assert cost.epochs(examples=10) == 2  # three passes over ten examples, twice


def test_what_is_done_once_counts_once() -> None:
    cost = Cost()
    for _ in range(3):
        cost.add_once("outputs", 7)
    cost.add_once("metric", 5)
    assert cost.passes == 12


def test_a_free_block_counts_nothing() -> None:
    cost = Cost()
    cost.add(3)
    with cost.free():
        cost.add(100)
    assert cost.passes == 3


def test_a_resumed_walk_goes_on_with_its_own_count() -> None:
    state = WalkState()
    cost = Cost()
    cost.add_once("outputs", 4)
    cost.kept_in(state)
    cost.add(6)
    resumed = Cost()
    resumed.kept_in(state)  # of the interrupted walk
    assert resumed.passes == 10
    resumed.add_once("outputs", 4)
    resumed.add(1)
    assert resumed.passes == 11
    assert state.values["passes"] == 11

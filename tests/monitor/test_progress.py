from __future__ import annotations

import io
import json
from collections.abc import Sequence

import pytest
from rich.console import Console

import geomerge
from geomerge.monitor import log_lines, sparkline, write_line
from geomerge.monitor.bars import Board
from geomerge.monitor.progress import Progress, Tracker


class Clock:
    """A second passes from one report to the next."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def report(self, tracker: Tracker, *progress: Progress) -> list[tuple[str, str, int]]:
        found = []
        for one in progress:
            self.now += 1
            found += [(event, t.name, t.step) for event, t in tracker.report(one)]
        return found


def walk(name: str, steps: Sequence[int], of: int) -> list[Progress]:
    return [Progress(name, step, of, {"a": step / of}) for step in steps]


def test_a_walk_starts_goes_on_and_ends() -> None:
    clock = Clock()
    tracker = Tracker(clock)
    told = clock.report(tracker, *walk("toward a", [1, 2, 3], 3))
    assert told == [
        ("start", "toward a", 1), ("step", "toward a", 1), ("step", "toward a", 2),
        ("step", "toward a", 3), ("end", "toward a", 3),
    ]  # fmt: skip
    assert tracker.close() == []
    assert tracker.ended == 1


def test_the_next_walk_ends_one_that_stopped_early_and_a_step_back_begins_anew() -> None:
    clock = Clock()
    tracker = Tracker(clock)
    told = clock.report(tracker, *walk("toward a", [1, 2], 9), *walk("from b", [1], 9))
    assert told[-3:] == [("end", "toward a", 2), ("start", "from b", 1), ("step", "from b", 1)]
    told = clock.report(tracker, *walk("from b", [1], 9))
    assert told == [("end", "from b", 1), ("start", "from b", 1), ("step", "from b", 1)]
    assert [one.name for one in tracker.open] == ["from b"]


def test_walks_go_within_the_parts_of_a_run() -> None:
    clock = Clock()
    tracker = Tracker(clock)
    told = clock.report(
        tracker,
        Progress("slerp", 0, 2, {}, whole=True),
        *walk("toward a", [1, 2], 9),
        Progress("ewc", 1, 2, {}, whole=True),
    )
    assert told[-2:] == [("end", "toward a", 2), ("step", "ewc", 1)]
    assert [(one.name, one.whole) for one in tracker.open] == [("ewc", True)]
    clock.report(tracker, *walk("toward b", [1], 9))
    same = clock.report(tracker, Progress("ewc", 1, 2, {}, whole=True))
    assert same == [("step", "ewc", 1)]
    clock.report(tracker, *walk("toward b", [2], 9))
    assert [(event, one.name) for event, one in tracker.close()] == [
        ("end", "toward b"), ("end", "ewc"),
    ]  # fmt: skip
    again = clock.report(tracker, Progress("slerp", 0, 2, {}, whole=True))
    assert again[0] == ("start", "slerp", 0)


def test_the_time_left_is_that_of_the_steps_left_at_the_pace_of_late() -> None:
    clock = Clock()
    tracker = Tracker(clock)
    clock.report(tracker, *walk("toward a", [41], 100))  # it goes on where it was stopped
    (one,) = tracker.open
    assert tracker.remaining(one) is None
    clock.report(tracker, *walk("toward a", [43, 45], 100))
    assert tracker.remaining(one) == pytest.approx(55 / 2)
    clock.now += 10
    assert tracker.remaining(one) == pytest.approx(55 / 2 - 10)
    clock.now += 100
    assert tracker.remaining(one) == 0


def test_an_accuracy_counts_once_for_each_measurement() -> None:
    tracker = Tracker()
    first, second = {"a": 0.5}, {"a": 0.5}
    for step, found in enumerate((first, first, second, second), 1):
        tracker.report(Progress("toward a", step, 9, found))
    assert tracker.open[0].accuracy == {"a": [0.5, 0.5]}


def test_sparklines_rise_and_fit() -> None:
    assert sparkline([0, 1 / 7, 1]) == "▁▂█"
    assert sparkline([]) == ""
    assert sparkline([0.3, 0.3], low=0.3, high=0.3) == "▁▁"
    assert sparkline([-1, 2]) == "▁█"
    many = sparkline([k / 99 for k in range(100)], width=8)
    assert many == "▁▂▃▄▅▆▇█"


@pytest.mark.parametrize("width", [40, 60, 120])
def test_the_board_fits_any_width(width: int) -> None:
    clock = Clock()
    tracker = Tracker(clock)
    board = Board(tracker)
    long = "not learned, toward a-network-of-a-very-long-name, damping 0.0001"
    clock.report(tracker, Progress("joint-training", 3, 17, {}, whole=True))
    for step in range(1, 120):
        found = {"a": 0.1 + step / 150, "a task of a name longer than others": 0.95 - step / 1e4}
        clock.report(tracker, Progress(long, step, 400, found))
    console = Console(file=io.StringIO(), width=width, force_terminal=False, legacy_windows=False)
    with console.capture() as drawn:
        console.print(board)
    lines = drawn.get().splitlines()
    assert len(lines) == 5
    assert max(map(len, lines)) <= min(width, 100)
    assert "3/17" in lines[0]
    assert "119/400 04:41 left" in lines[1]
    assert "89.3 %" in lines[2]
    assert lines[2].count("█") < lines[3].count("█")  # one scale for both
    assert "02:00 so far" in lines[4]


def test_lines_are_objects_with_a_time() -> None:
    stream = io.StringIO()
    with log_lines(stream) as show:
        for progress in walk("toward a", [1, 2], 9):
            show(progress)
    write_line(stream, "finished", folder="runs/a-b")
    told = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [e["event"] for e in told] == ["start", "step", "step", "end", "finished"]
    assert all(e["time"].endswith("Z") for e in told)
    assert told[0]["remaining_seconds"] is None
    assert told[2]["accuracy"] == {"a": 2 / 9}
    assert told[2]["step"] == told[3]["step"] == 2
    assert told[-1]["folder"] == "runs/a-b"


def test_lines_end_what_was_under_way_when_something_fails() -> None:
    stream = io.StringIO()
    with pytest.raises(ValueError), log_lines(stream) as show:
        show(Progress("toward a", 1, 9, {}))
        raise ValueError
    assert json.loads(stream.getvalue().splitlines()[-1])["event"] == "end"


def test_nothing_is_shown_or_measured_where_nobody_looks(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with geomerge.progress() as show:
        assert show is None
    assert capsys.readouterr() == ("", "")


def test_a_notebook_has_one_output_that_is_empty_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    display = pytest.importorskip("IPython.display", reason="IPython is not installed")
    updates: list[object] = []

    class Handle:
        update = staticmethod(updates.append)

    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr(display, "display", lambda shown, display_id: Handle())
    monkeypatch.setattr("geomerge.monitor.bars._PER_SECOND", float("inf"))
    with pytest.raises(KeyboardInterrupt), geomerge.progress() as show:
        assert show is not None
        show(Progress("toward a", 1, 9, {"a": 0.5}))
        raise KeyboardInterrupt
    board, last = updates
    assert "toward a" in board._repr_mimebundle_([], [])["text/html"]  # type: ignore[attr-defined]
    assert last.data == ""  # type: ignore[attr-defined]

"""A stream that is interrupted goes on with the rows that are missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from geomerge.monitor.progress import Progress
from geomerge.runs.stream import run_stream
from geomerge.strategies import StreamOptions, stream
from geomerge.walks.state import StateFile

pytestmark = pytest.mark.filterwarnings("ignore:No loggers specified")


class Stop(BaseException):
    """As sudden as a kill, for a test that goes on."""


def timeless(report: Any) -> Any:
    """Return a report without the times in it."""
    if isinstance(report, dict):
        return {k: timeless(v) for k, v in report.items() if "seconds" not in k}
    return [timeless(one) for one in report] if isinstance(report, list) else report


@pytest.mark.slow
def test_an_interrupted_stream_trains_the_missing_rows_only(tmp_path: Path) -> None:
    options = StreamOptions(
        "split-digits", experiences=2, epochs=2, batch=32, memory_examples=(20,), arch="mlp-16",
        rates=("si=1e9",),
    )  # fmt: skip
    seen: list[tuple[Any, ...]] = []

    def run(out: str, last: tuple[str, int] | None = None) -> dict[str, Any]:
        seen.clear()

        def learned(now: Progress) -> None:
            if not now.whole:
                seen.append((now.walk, now.step))
                if seen[-1] == last:
                    raise Stop

        def learn(work: Path) -> dict[str, Any]:
            return stream(options=options, work=work, progress=learned).to_json()

        given = "split-digits", options.recipe(), "geomerge stream split-digits", learn
        return run_stream(*given, tmp_path / out)[1]

    whole = run("whole")
    assert list(whole["diverged"]) == ["si"]
    for last in (("ewc", 2), ("gem", 1)):
        with pytest.raises(Stop):
            run("run", last)
    work = tmp_path / ".run.unfinished" / "work"
    kept = {f.parent.name: StateFile(f).state.values for f in work.rglob("state")}
    assert set(kept) == {name for name in options.rows[: options.rows.index("gem")]} - {"si"}
    found = run("run")
    assert not {row for row, _ in seen} & set(kept)
    assert timeless(found) == timeless(whole)
    for row in found["rows"]:
        if row["name"] in kept:
            assert row["seconds"] == kept[row["name"]]["seconds"]
    assert json.loads((tmp_path / "run" / "report.json").read_text()) == found
    assert {p.name for p in tmp_path.iterdir()} == {"whole", "run"}

"""The page on the numbers in reports explains every field that reports have, and no others."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

from merges import run_of

from geomerge.comparison import CompareOptions
from geomerge.expert_options import DataOptions
from geomerge.merging import MergeOptions
from geomerge.pruning.options import ReconfigureOptions, SparsifyFiles, SparsifyOptions
from geomerge.report.schema import MergeRunReport
from geomerge.runs import run_reconfigure, run_sparsify
from geomerge.runs.compare import run_compare
from geomerge.strategies.options import StreamOptions

PAGE = Path(__file__).parents[2] / "docs" / "report.md"
BOTH = ("digits", "digits-permuted")


def sections() -> dict[str, list[str]]:
    """The fields that each section of the page explains."""
    found: dict[str, list[str]] = {}
    for part in re.split(r"^## ", PAGE.read_text(), flags=re.M)[1:]:
        found[part.splitlines()[0]] = re.findall(r"^\| `([^`]+)` \|", part, flags=re.M)
    return found


def tokens(field: str) -> list[str]:
    """``"a.b[].c..."`` as a, b, [], c, and ``...`` for all that is below."""
    whole = field.removesuffix("...")
    parts = re.findall(r"\[\]|[^.\[\]]+", whole)
    return [*parts, "..."] if whole != field else parts


def unexplained(content: Any, fields: Mapping[str, list[str]], used: set[str]) -> list[str]:
    """The places of a report that no field leads to; fields that lead somewhere join ``used``."""
    everything = [field for field, rest in fields.items() if rest == ["..."]]
    if everything:
        used.update(everything)
        return []
    if isinstance(content, Mapping):
        missing = []
        for key, value in content.items():
            exact = {f: rest[1:] for f, rest in fields.items() if rest[:1] == [key]}
            below = exact or {f: rest[1:] for f, rest in fields.items() if rest[:1] == ["NAME"]}
            found = unexplained(value, below, used) if below else [""]
            missing += [f"{key}.{place}".rstrip(".") for place in found]
        return missing
    if isinstance(content, list):
        below = {f: rest[1:] for f, rest in fields.items() if rest[:1] == ["[]"]}
        if not below:
            return ["[]"]
        return [f"[].{place}" for value in content for place in unexplained(value, below, used)]
    ends = [field for field, rest in fields.items() if not rest]
    used.update(ends)
    return [] if ends or (content is None and fields) else [""]


def check(content: Any, *names: str) -> set[str]:
    """Assert that sections explain a report; returns their fields that it does not have."""
    fields = {field: tokens(field) for name in names for field in sections()[name]}
    used: set[str] = set()
    missing = unexplained(json.loads(json.dumps(content)), fields, used)
    assert not missing, f"docs/report.md says nothing of {sorted(set(missing))}"
    own = sections()[names[-1]]
    # What may be null has a line of its own beside those of what is in it.
    return {f for f in own if f not in used and not any(o.startswith(f"{f}.") for o in own)}


def leaves(kind: Any) -> set[str]:
    """The fields below a type, as the page writes them: ``.name``, ``[].name``, ``.NAME``."""
    if is_typeddict(kind):
        fields = get_type_hints(kind, include_extras=False)
        return {f".{name}{rest}" for name, inner in fields.items() for rest in leaves(inner)}
    if get_origin(kind) is NotRequired:
        return leaves(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        own = [one for one in get_args(kind) if one is not type(None)]
        nested = [one for one in own if leaves(one) != {""}]
        return {""} | leaves(nested[0]) if nested else {""}
    if get_origin(kind) is list:
        return {f"[]{rest}" for rest in leaves(get_args(kind)[0])}
    if get_origin(kind) is dict:
        inner = get_args(kind)[1]
        return {"..."} if inner is Any else {f".NAME{rest}" for rest in leaves(inner)}
    return {""}


def test_the_page_has_every_field_of_the_type_of_a_merge_report_and_no_others() -> None:
    typed = {field[1:] for field in leaves(MergeRunReport)}
    explained = {*sections()["All runs"], *sections()["Merge"]}
    # What may be null need not have a line of its own.
    nulls = {
        f for f in typed - explained if any(re.match(rf"{re.escape(f)}[.[]", o) for o in explained)
    }
    assert typed - nulls == explained


def test_merge(digits: Path, tmp_path: Path) -> None:
    options = {
        "manifold": BOTH[:1], "steps": 20, "damping": 1e-3, "align": "weights", "relax": True,
        "points": 12, "budget": ("b=0.00001",),
    }  # fmt: skip
    folder, report, _ = run_of([digits / "a.pt", digits / "b.pt"], options, out=tmp_path / "m")
    left = check(report, "All runs", "Merge")
    # This network has no such weights, its head is shared, its classes are in one order, it came
    # from a file, with all its data, and is no language model.
    surrogates = {f for f in left if f.startswith("surrogates.") or f.endswith(".perplexity")}
    networks = {"networks.NAME.outputs[]", "networks.NAME.class_order[]"}
    unused = {"diagonal_only[]", "folders.NAME", *networks, *surrogates}
    assert not left - unused
    lines = (folder / "path" / "steps.jsonl").read_text().splitlines()
    for line in lines:
        assert not check(json.loads(line), "Each step of a path")


def test_sparsify_and_reconfigure(digits: Path, tmp_path: Path) -> None:
    single = SparsifyOptions(sparsity=0.5, steps=4, stages=2, labels=True)
    _, report, _ = run_sparsify(digits / "a.pt", single, out=tmp_path / "single")
    units = SparsifyOptions(
        remove={"layers.0": 4}, choice="rates", budget=0.5, steps=4, stages=2, points=8
    )
    run = run_sparsify(
        digits / "a.pt", units, files=SparsifyFiles(shrink=True), out=tmp_path / "units"
    )
    names = ("All runs", "Sparsify")
    left = check(report, *names) & check(run[1], *names)
    assert not left - {"notes[]", "paths[].shadow_prices.NAME"}

    plan = tmp_path / "plan.yaml"
    plan.write_text("- name: C2\n  remove: {layers.0: 4}\n- name: C3\n  restore: {layers.0: 2}\n")
    _, report, _ = run_reconfigure(
        digits / "a.pt", plan, ReconfigureOptions(steps=4, stages=2), out=tmp_path / "moves"
    )
    left = check(report, "All runs", "Reconfigure")
    assert not left - {"configurations[].path.shadow_prices.NAME"}


def test_compare(digits: Path, tmp_path: Path) -> None:
    options = CompareOptions(
        MergeOptions(steps=8),
        only=("a", "b", "straight-line", "task-arithmetic", "wise-ft", "joint-walk", "sketch-walk"),
        max_samples=2000,
    )
    files, data = [digits / "a.pt", digits / "b.pt"], DataOptions(manifold=BOTH)
    _, report, _ = run_compare(files, options, data, out=tmp_path / "c")
    assert not check(report, "All runs", "Compare")


def test_stream() -> None:
    from geomerge.strategies import stream

    options = StreamOptions("split-digits", only=("geodesic", "naive"), epochs=2, walk_epochs=1)
    report = {**stream(options=options).to_json(), "recipe": options.recipe()}
    left = check(report, "All runs", "Stream")
    assert not left - {"diverged...", "rows[].merges[].notes[]"}

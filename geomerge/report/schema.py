"""Types of a merge's ``report.json``; docs/report.md explains every field."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

__all__ = [
    "AlignmentEntry",
    "AnswersEntry",
    "BudgetsEntry",
    "CandidateEntry",
    "Certificate",
    "Count",
    "CurveEntry",
    "ExampleEntry",
    "LegEntry",
    "MergeRunReport",
    "NetworkEntry",
    "PathMeasureEntry",
    "RelaxedEntry",
    "ResultEntry",
    "StageEntry",
    "UsedData",
]


class HeadEntry(TypedDict):
    """Protocol of the head, as a word and as a sentence."""

    protocol: str
    meaning: str


class NetworkEntry(TypedDict):
    """One of the merged networks."""

    file: str
    sha256: str
    architecture: str | None
    task: str | None
    measure: NotRequired[str]
    outputs: list[int] | None
    class_offset: int
    class_order: NotRequired[list[int] | None]
    sketch: dict[str, Any] | None


class AlignmentEntry(TypedDict):
    """Permutation of a network's units."""

    method: str
    groups: int
    units: int
    moved: int
    not_aligned: dict[str, Any]
    distance_before: float
    distance_after: float


class LegEntry(TypedDict):
    """Leg of the finished path."""

    walked_from: str
    to: str
    keeps_function_of: list[str]
    metric: str
    length: float


# Functional syntax, because "for" is a keyword of Python.
UsedData = TypedDict(
    "UsedData", {"for": str, "task": str | None, "split": str, "inputs": int, "labels": bool}
)


class DataEntry(TypedDict):
    """Data of the walks, of the pick and of the row of joint training."""

    walk: list[UsedData]
    pick: list[UsedData]
    beside: list[UsedData]


class CrossoverEntry(TypedDict):
    """The picked point."""

    t: float
    pick: str
    damping: float
    step: int
    select: dict[str, float | None]
    drift: dict[str, float | None]
    better: NotRequired[str | None]


class CandidateEntry(TypedDict):
    """One walk of a stage, at its best point."""

    damping: float
    chosen: bool
    value: float
    length: float
    step: int
    select: dict[str, float | None]
    within_budgets: bool


class DampingEntry(TypedDict):
    """Damping along a walk."""

    first: float | None
    last: float | None
    smallest: float | None
    largest: float | None


class PriceEntry(TypedDict):
    """Shadow price of a budget."""

    steps_bound: int
    mean: float
    largest: float


class BudgetsEntry(TypedDict):
    """Budgets of a walk, and its quadratic programs."""

    limits: dict[str, float]
    steps: int
    programs_solved: int
    largest_residual: float
    steps_shortened: int
    shadow_prices: dict[str, PriceEntry]


class StageEntry(TypedDict):
    """One stage of walks."""

    learned: list[str]
    candidates: list[CandidateEntry]
    damping: DampingEntry
    budgets: BudgetsEntry | None


class PathMeasureEntry(TypedDict):
    """Energy and length of a leg."""

    energy: float
    length: float
    bound: float
    gap: float | None
    worst_accuracy: float | None


class RelaxedEntry(TypedDict):
    """Relaxation of a leg."""

    leg: str
    share: float
    before: PathMeasureEntry
    after: PathMeasureEntry


class ResultEntry(TypedDict):
    """Row of the table of results."""

    name: str
    select: dict[str, float | None]
    test: dict[str, float | None]
    hardly_trained: NotRequired[bool]


class CurveEntry(TypedDict):
    """Stored point of the path; all numbers by network."""

    t: float
    accuracy: dict[str, float | None]
    classes: dict[str, dict[str, float]]
    distance: dict[str, float]
    predicted: dict[str, float | None]
    measured: dict[str, float | None]


class PathEntry(TypedDict):
    """The stored path."""

    points: int
    lengths: dict[str, float]


class LayerEntry(TypedDict):
    """Distances of one tensor."""

    name: str
    weights: int
    distance: dict[str, float]
    apart: float


class ExampleEntry(TypedDict):
    """Test example whose answer changed."""

    index: int
    label: int
    before: int | None
    after: int | None
    image: str | None


class AnswersEntry(TypedDict):
    """Answers on the test split of one task, before and after."""

    of: int
    kept: int
    lost: int
    gained: int
    wrong: int
    shown: list[ExampleEntry]


class PlanePoint(TypedDict):
    """Point of the path, projected onto the plane."""

    t: float
    x: float
    y: float
    off: float


class PlaneEntry(TypedDict):
    """Losses in the plane through both ends and the crossover."""

    xs: list[float]
    ys: list[float]
    losses: dict[str, list[list[float | None]]]
    marks: dict[str, list[float]]
    path: list[PlanePoint]
    examples: int


class Count(TypedDict):
    """Number of right examples, with a 95 % interval; or the perplexity of so many tokens."""

    of: int
    correct: NotRequired[int]
    accuracy: NotRequired[float]
    interval: NotRequired[list[float]]
    perplexity: NotRequired[float]


class BracketEntry(TypedDict):
    """Stored point next to the crossover."""

    t: float
    select: dict[str, Count]


class CountsEntry(TypedDict):
    """Counts of one network on the splits of all tasks."""

    select: dict[str, Count]
    test: dict[str, Count]


class LegDrift(TypedDict):
    """Functional change of the steps of a leg, summed."""

    steps: int
    predicted: float
    measured: float | None


class NetworkDrift(TypedDict):
    """Functional change from a network to the crossover."""

    predicted: float | None
    measured: float | None
    kl: float | None


class DriftEntry(TypedDict):
    """Functional changes of legs and networks."""

    legs: dict[str, LegDrift]
    networks: dict[str, NetworkDrift]


class ProgramsEntry(TypedDict):
    """Quadratic programs of all walks."""

    solved: int
    largest_residual: float


class Certificate(TypedDict):
    """Claims that ``geomerge verify`` checks again."""

    files: dict[str, Any]
    inputs: dict[str, Any]
    sketches: dict[str, Any]
    data: dict[str, Any]
    recipe: dict[str, Any]
    seeds: dict[str, Any]
    environment: dict[str, Any]
    crossover: float
    bracket: list[BracketEntry]
    accuracies: dict[str, CountsEntry]
    drift: DriftEntry
    programs: ProgramsEntry
    identity: dict[str, Any]
    report_sha256: NotRequired[str]


class SurrogateEntry(TypedDict):
    """Surrogate inputs of one network."""

    kind: str
    inputs: int
    first: str
    shown: list[str]


class MergeRunReport(TypedDict):
    """Content of a merge's ``report.json``."""

    geomerge: str
    torch: str
    recipe: dict[str, Any]
    preset: str
    metric: str
    head: HeadEntry
    bn: str | None
    networks: dict[str, NetworkEntry]
    folders: dict[str, str]
    base: str | None
    alignment: dict[str, AlignmentEntry | None]
    legs: list[LegEntry]
    data: DataEntry
    crossover: CrossoverEntry
    stages: list[StageEntry]
    relaxed: list[RelaxedEntry]
    results: list[ResultEntry]
    curve: list[CurveEntry]
    curve_examples: NotRequired[int | None]  # of each selection split; None or absent is all
    path: PathEntry
    layers: list[LayerEntry]
    answers: dict[str, AnswersEntry]
    plane: PlaneEntry | None
    surrogates: NotRequired[dict[str, SurrogateEntry]]  # runs before version 0.2 have none
    diagonal_only: list[str]
    notes: list[str]
    command: NotRequired[str]
    certificate: NotRequired[Certificate]

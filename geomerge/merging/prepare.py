"""Preparation of a merge: one weight space for all experts, or the problems that prevent it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from geomerge.alignment import ROTATIONS, Alignment
from geomerge.data import Inputs
from geomerge.data.batchnorm import has_statistics
from geomerge.errors import OptionError, Problems
from geomerge.evaluation.drift import LARGE, Probe, Scorer, probe_of
from geomerge.evaluation.plausibility import FirstLook
from geomerge.expert import Expert
from geomerge.io.checkpoint import Checkpoint
from geomerge.loading import NAMES
from geomerge.merging.aligning import align_experts
from geomerge.merging.ancestor import ancestor_point, named_like
from geomerge.merging.buffers import constants_to_json
from geomerge.merging.class_names import with_one_numbering
from geomerge.merging.compatibility import check_compatible
from geomerge.merging.heads import Heads, arrange_heads, widen_metric
from geomerge.merging.measuring import metric_of
from geomerge.merging.options import POINTS, MergeOptions
from geomerge.merging.same_make import check_same_function
from geomerge.merging.vocabulary import with_one_vocabulary
from geomerge.metrics import Metric, Sketch, make_sketch
from geomerge.metrics.kronecker.forms import in_form
from geomerge.metrics.sketch import INPUTS
from geomerge.networks.autocast import precision_notes
from geomerge.paths.leg import points_stored
from geomerge.weight_space import WeightSpace

__all__ = ["PreparedMerge", "aligned_merge", "prepare", "rough_share"]

ROUGH = 500  # examples of each task in a first search among the points of a large network
HELD_OUT = 4  # one of so many inputs of a fine-tune without labels is kept for the pick


@dataclass(frozen=True, eq=False)
class PreparedMerge:
    """Experts in one weight space, with all that a preset needs to merge them.

    Attributes:
        space: Experts with the common head, aligned where the options demand it.
        options: Options of the merge.
        heads: Places of each expert's outputs.
        alignments: Permutations of units, by the names of the experts that were aligned.
        notes: Sentences for the user.
        buffers: Tensors of each expert that are no weights, such as counters, by its name.
        surrogates: Surrogate inputs of experts without any, by name.
        base: Common ancestor as a point of the space, shape (n,); None if none was given.
        looks: First look at each expert with a task, by name, where it was taken.
    """

    space: WeightSpace
    options: MergeOptions
    heads: Heads
    alignments: Mapping[str, Alignment]
    notes: list[str]
    buffers: Mapping[str, Mapping[str, Tensor]]
    surrogates: Mapping[str, Inputs] = field(default_factory=dict)
    base: Tensor | None = None
    looks: Mapping[str, FirstLook] = field(default_factory=dict)
    _sketches: dict[str, Sketch] = field(default_factory=dict)
    _formed: dict[str, Sketch] = field(default_factory=dict)  # those that came with experts

    @property
    def points(self) -> int:
        """Largest number of stored points of a leg."""
        return points_stored(self.options.machine.points, POINTS, self.space.network.n)

    def sketch(self, expert: Expert) -> Sketch:
        """Return an expert's sketch: its own, else one made of its inputs.

        Within a limit of memory its factors are in the form that the limit leaves room for.

        Args:
            expert: Expert with a sketch, inputs or surrogates of them.
        """
        if expert.sketch is not None:
            if expert.name not in self._formed:
                metric = in_form(expert.sketch.metric, self.space.network)
                self._formed[expert.name] = replace(expert.sketch, metric=metric)
            return self._formed[expert.name]
        if expert.name not in self._sketches:
            self._sketches[expert.name] = self.sketch_at(expert, expert.weights)
        return self._sketches[expert.name]

    def sketch_at(
        self,
        expert: Expert,
        w: Tensor,  # (n,)
    ) -> Sketch:
        """Return a sketch of an expert's function at a point of the space, made of its inputs."""
        inputs = self.with_surrogates(expert).inputs
        assert inputs is not None, "a sketch is made where there are inputs"
        return make_sketch(
            expert.network, w, inputs, inputs.name, count=inputs.enough(INPUTS),
            output=self.options.measure.output, seed=self.options.machine.seed,
        )  # fmt: skip

    def probe(self, expert: Expert) -> Probe | None:
        """Return a probe of an expert's function; None without inputs."""
        return probe_of(self.with_surrogates(expert), self.options.measure.output)

    def scorer(self, experts: Sequence[Expert]) -> Scorer:
        """Return the meter of points for a pick among experts, on inputs that no walk learns on."""
        known = [self.held_out(self.with_surrogates(expert)) for expert in experts]
        return Scorer(known, self.options.measure.output)

    def rough_scorer(self, experts: Sequence[Expert]) -> Scorer | None:
        """Return a meter on part of the selection splits, for a first search among many points.

        None where all of them can be measured exactly in short time: of small networks, or where
        no selection split is larger.
        """
        if rough_share(experts) == 1:
            return None
        few = [
            replace(e, task=replace(e.task, select=e.task.select.sample(ROUGH))) if e.task else e
            for e in experts
        ]
        return self.scorer(few)

    def learned_on(self, expert: Expert) -> Expert:
        """Return an expert whose inputs are those that a walk learns on, without the held out."""
        return self._part(expert, held=False)

    def held_out(self, expert: Expert) -> Expert:
        """Return an expert whose inputs are those that are kept for the pick alone.

        They are every fourth input of fine-tunes of a base whose selection split is not there.
        """
        return self._part(expert, held=True)

    def _part(self, expert: Expert, held: bool) -> Expert:
        inputs = expert.inputs
        if self.base is None or expert.task is not None or expert.name in self.surrogates:
            return expert
        if inputs is None or len(inputs) < HELD_OUT:
            return expert
        places = torch.arange(len(inputs))
        index = places[(places % HELD_OUT == 0) == held]
        return replace(expert, inputs=inputs.take(index))

    def metric_of(self, experts: Sequence[Expert]) -> Callable[[Tensor], Metric]:
        """Return the function of a point that measures the metric of experts there."""
        known = [self.with_surrogates(expert) for expert in experts]
        return metric_of(known, self.options.measure, self.options.machine.seed)

    def with_surrogates(self, expert: Expert) -> Expert:
        """Return an expert whose missing inputs are replaced by surrogates, if it has some."""
        if expert.inputs is not None or expert.name not in self.surrogates:
            return expert
        return replace(expert, inputs=self.surrogates[expert.name])

    @property
    def still(self) -> Tensor | None:  # (n,), bool
        """Mask of the weights that no walk moves; None if all are moved.

        They are frozen ones, those between separate heads, with ``keep_zeros`` all common zeros,
        and with ``adapter_rank`` what no adapter changes.
        """
        network = self.space.network
        masks = [mask for mask in (self.heads.fixed(network), network.held) if mask is not None]
        if self.options.walk.keep_zeros:
            masks.append(self.space.common_zeros)
        if self.options.machine.adapter_rank is not None:
            masks.append(self.space.unchanged)
        return torch.stack(masks).any(dim=0) if masks else None

    @property
    def sketched(self) -> frozenset[str]:
        """Names of the experts whose sketch was made by the merge."""
        return frozenset(self._sketches)

    @property
    def known_space(self) -> WeightSpace:
        """The space, its experts with the sketches that the merge made."""
        made = self._sketches
        experts = [replace(e, sketch=made.get(e.name, e.sketch)) for e in self.space]
        return replace(self.space, experts=tuple(experts))

    def checkpoint(self, expert: Expert) -> Checkpoint:
        """Return an expert in the form stored in a path: common head, aligned, all buffers."""
        state = expert.network.shared_module(expert.weights).state_dict()
        weights = {name: value.detach().cpu() for name, value in state.items()}  # views
        meta = {**expert.meta, **self.head_meta}
        return Checkpoint({**weights, **self.buffers[expert.name]}, meta, {}, expert.source)

    @property
    def head_meta(self) -> dict[str, object]:
        """Metadata of a merged network's blocks of outputs; empty in a shared head."""
        if self.space.head == "shared":
            return {}
        blocks: dict[str, dict[str, Any]] = {}
        for expert in self.space:
            columns = expert.network.columns
            if expert.task is not None:
                own = [columns.start, columns.stop] if columns.stop else None
                blocks[expert.task.name] = {
                    "outputs": own, "offset": self.heads.offsets[expert.name],
                }  # fmt: skip
                if expert.network.constants:
                    kept = constants_to_json(expert.network.constants)
                    blocks[expert.task.name]["constants"] = kept
        return {"head": {"protocol": self.space.head, "tasks": blocks}}


def rough_share(experts: Sequence[Expert]) -> float:
    """Return the share of the selection splits that a first search among many points measures.

    It is 1 for small networks, and where more than half of the examples would be measured.

    Args:
        experts: Experts of a weight space.
    """
    sizes = [len(expert.task.select.labels) for expert in experts if expert.task is not None]
    if not sizes or experts[0].network.n < LARGE:
        return 1.0
    share = sum(min(size, ROUGH) for size in sizes) / sum(sizes)
    return share if share <= 0.5 else 1.0


def prepare(
    experts: Sequence[Expert],
    options: MergeOptions,
    problems: Problems,
    base: Expert | None = None,
) -> PreparedMerge | None:
    """Put experts into one weight space.

    Args:
        experts: Experts, in the order of the path.
        options: Options of the merge.
        problems: Collector of all that is in the way; one that is strict raises the first.
        base: Common ancestor of the experts; None if there is none.

    Returns:
        The prepared merge. None where it cannot be prepared and the problems are collected.

    Raises:
        GeomergeError: If something is in the way and the problems are strict.
    """
    found = Problems(strict=problems.strict)
    prepared = _prepared(experts, options, found, base)
    for sentence in found:
        problems.note(sentence)
    return prepared


def _prepared(
    experts: Sequence[Expert],
    options: MergeOptions,
    problems: Problems,
    base: Expert | None,
) -> PreparedMerge | None:
    with problems.noted():
        experts = _named(experts)
        everyone = with_one_vocabulary(
            [*experts, *([] if base is None else [base])], options.vocabulary
        )
        experts, base = everyone[: len(experts)], None if base is None else everyone[-1]
    if problems:
        return None
    constants = check_compatible(experts, options, problems, base)
    with problems.noted():
        if options.head == "shared" and not problems:
            experts = with_one_numbering(experts)
    if problems:
        return None
    with problems.noted():
        prepared = _with_constants(_in_one_space(experts, options, base), constants)
        check_same_function(experts, prepared.space, prepared.heads.rows)
        prepared = _with_frozen(prepared)
        if options.align not in (None, "none"):
            prepared = aligned_merge(prepared)
        return _in_precision(_with_statistics(prepared))
    return None


def _named(experts: Sequence[Expert]) -> list[Expert]:
    if len(experts) < 2:
        raise OptionError(f"expected two networks or more, got {len(experts)}; name them")
    if len(experts) > len(NAMES):
        raise OptionError(f"expected at most {len(NAMES)} networks, got {len(experts)}; give fewer")
    return [replace(e, name=name) for e, name in zip(experts, NAMES, strict=False)]


def _in_one_space(
    experts: Sequence[Expert], options: MergeOptions, base: Expert | None
) -> PreparedMerge:
    experts = [expert.for_output(options.measure.output) for expert in experts]
    notes = _notes(experts)
    known = (e.meta.get("architecture") for e in experts)
    architecture = next(filter(None, known), None) or experts[0].architecture
    if base is not None:
        base = named_like(base, experts)
    network, heads, weights = arrange_heads(experts, options.head, base)
    placed, buffers = [], {}
    for expert, own in zip(experts, weights, strict=True):
        name, sketch = expert.name, expert.sketch
        if sketch is not None:
            metric = widen_metric(sketch.metric, expert.network, network, heads, name)
            sketch = Sketch(metric, sketch.meta)
        offset = heads.offsets[name]
        task = expert.task.shifted(offset) if expert.task and offset else expert.task
        state = expert.network.module.state_dict()
        buffers[name] = {
            k: v.detach().cpu().clone() for k, v in state.items() if k not in expert.network.shapes
        }
        view = network.head_view(heads.columns[name])
        meta = {**expert.meta, "architecture": architecture} if architecture else expert.meta
        placed.append(
            replace(expert, network=view, weights=own, task=task, sketch=sketch, meta=meta)
        )
    space = WeightSpace(network, tuple(placed), options.head)
    if heads.hidden:
        notes.append(
            f"{' and '.join(heads.hidden)} {'is' if len(heads.hidden) == 1 else 'are'} not in the "
            "base: each network keeps its own, as part of its head"
        )
    point, said = (None, []) if base is None else ancestor_point(base, space, heads)
    found = [*notes, *said]
    return PreparedMerge(space, options, heads, {}, found, buffers, base=point)


def _notes(experts: Sequence[Expert]) -> list[str]:
    """Return sentences on assumptions about the experts and on missing data."""
    notes = [note for expert in experts for note in (*expert.warnings, *expert.notes)]
    return list(dict.fromkeys(notes))


def aligned_merge(prepared: PreparedMerge) -> PreparedMerge:
    """Return a merge whose experts have their units in the order of the first's.

    Args:
        prepared: Merge with the method in its options.

    Raises:
        OptionError: If there is nothing to trace the network with, it cannot be traced, or none of
            its units can be matched.
    """
    space, alignments = align_experts(prepared.space, prepared.heads, prepared.options)
    what = "the same function"
    if prepared.heads.layer is not None:  # the others' rows are not permuted with it
        what += " on its own outputs"
    first = space.experts[0].name
    notes = [
        f"{name} was aligned with {first}: a permutation of its units, {what}"
        for name in alignments
    ]
    if prepared.options.align == ROTATIONS:
        notes.append(
            "the streams and attention heads of networks were rotated before, and the scales of "
            f"their norms absorbed by the matrices that read them: {what}"
        )
        if any(expert.sketch is not None for expert in prepared.space):
            notes.append("sketches do not follow rotations and were left out")
    return replace(prepared, space=space, alignments=alignments, notes=[*prepared.notes, *notes])


def _with_constants(
    prepared: PreparedMerge, constants: Mapping[str, Mapping[str, Tensor]]
) -> PreparedMerge:
    """Return the merge with buffers of each expert's own, where they differ."""
    if not constants:
        return prepared
    space = prepared.space
    experts = [replace(e, network=e.network.with_constants(constants[e.name])) for e in space]
    network = space.network.with_constants(constants[experts[0].name])
    names = ", ".join(repr(name) for name in constants[experts[0].name])
    note = f"each task keeps its own {names}, which training does not change"
    return replace(
        prepared, space=replace(space, network=network, experts=tuple(experts)),
        notes=[*prepared.notes, note],
    )  # fmt: skip


def _with_frozen(prepared: PreparedMerge) -> PreparedMerge:
    """Return the merge with the weights held that all networks have frozen, and have alike."""
    space = prepared.space
    frozen = frozenset.intersection(*(expert.network.frozen for expert in space))
    if not frozen:
        return replace(prepared, space=space.holding(()))
    tensors = [space.network.unravel(expert.weights) for expert in space]
    equal = {name for name in frozen if all(t[name].equal(tensors[0][name]) for t in tensors)}
    moved = sorted(frozen - equal)
    notes = list(prepared.notes)
    if moved:
        more = f" and {len(moved) - 1} more" if len(moved) > 1 else ""
        notes.append(
            f"{moved[0]!r}{more} is frozen in every network and differs between them: the merge "
            "moves it"
        )
    return replace(prepared, space=space.holding(equal), notes=notes)


def _with_statistics(prepared: PreparedMerge) -> PreparedMerge:
    """Return the merge with its policy for running statistics."""
    space, options = prepared.space, prepared.options
    if not has_statistics(space.network):
        if options.bn is None:
            return prepared
        note = "the network has no running statistics: `bn` changes nothing"
        return replace(prepared, notes=[*prepared.notes, note])
    blind = [expert.name for expert in space if expert.inputs is None]
    if options.bn == "re-estimate" and blind:
        raise OptionError(
            f"`bn` re-estimate needs inputs of every network's task and {' and '.join(blind)} has "
            "none; name them with `inputs`, or use `bn` keep"
        )
    if options.bn == "re-estimate" and space.network.constants:
        raise OptionError(
            "`bn` re-estimate mixes inputs of all tasks in one network, and here each task has "
            "buffers of its own; use `bn` keep"
        )
    shapes = {str(expert.inputs.shape) for expert in space if expert.inputs is not None}
    if options.bn == "re-estimate" and len(shapes) > 1:
        raise OptionError(
            "`bn` re-estimate mixes inputs of all tasks, and theirs have different shapes; use "
            "`bn` keep"
        )
    apart = blind or len(shapes) > 1 or space.network.constants
    bn = options.bn or ("keep" if apart else "re-estimate")
    return replace(prepared, space=replace(space, bn=bn))


def _in_precision(prepared: PreparedMerge) -> PreparedMerge:
    """Return the merge whose passes with derivatives are in the precision of its options."""
    precision = prepared.options.machine.precision
    notes = precision_notes(precision, prepared.space.network.device)
    space = prepared.space.with_precision(precision)  # networks of an earlier merge had its own
    return replace(prepared, space=space, notes=[*prepared.notes, *notes])

"""Plan of a merge: preset and pick rule, chosen by the options and the data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from geomerge.errors import OptionError, Problems
from geomerge.evaluation.pick import USUAL, PickRule, parse_pick
from geomerge.evaluation.plausibility import doubts, first_looks
from geomerge.expert import Expert
from geomerge.io import paged
from geomerge.merging.auto_align import align_where_it_helps
from geomerge.merging.limits import refuse_budgets
from geomerge.merging.memory import fit_memory
from geomerge.merging.options import MergeOptions
from geomerge.merging.prepare import PreparedMerge, prepare
from geomerge.merging.presets.base import Preset
from geomerge.merging.presets.registry import PRESETS
from geomerge.networks.batches import are_images
from geomerge.weight_space import WeightSpace

__all__ = ["choose_preset", "choose_rule", "plan_merge", "zeros_filled"]

_SPARSE = 0.1  # share of zeros from which a network is taken to be sparse on purpose


def plan_merge(
    experts: Sequence[Expert],
    options: MergeOptions,
    problems: Problems,
    base: Expert | None = None,
    work: Path | None = None,
) -> tuple[Preset, PickRule] | None:
    """Prepare a merge and choose its preset and its pick rule.

    Args:
        experts: Experts, in the order of the path.
        options: Options of the merge.
        problems: Collector of all that is in the way; one that is strict raises the first.
        base: Common ancestor of the experts; None if there is none.
        work: Folder of the run's state; None if it cannot be resumed.

    Returns:
        The preset, made for the experts, and the rule. None where something is in the way and the
        problems are collected.

    Raises:
        GeomergeError: If something is in the way and the problems are strict.
    """
    known = len(problems)
    prepared = prepare(experts, options, problems, base)
    if prepared is None:
        return None
    with problems.noted():
        prepared = fit_memory(prepared, work)
    preset, rule = None, None
    with problems.noted():
        preset = choose_preset(prepared)
    if preset is not None:
        conflict = preset.conflict() or _unused(preset)
        if conflict is not None:
            with problems.noted():
                raise OptionError(conflict)
        with problems.noted():
            rule = choose_rule(preset)
        refuse_budgets(preset, problems)
    if preset is None or rule is None or len(problems) > known:
        return None
    prepared = preset.prepared
    named = [replace(e, name=own.name) for e, own in zip(experts, prepared.space, strict=True)]
    looks = first_looks(named)
    prepared.notes[:0] = [*doubts(named, looks), *zeros_filled(prepared)]
    preset.prepared = replace(prepared, looks=looks)
    return preset, rule


def _unused(preset: Preset) -> str | None:
    """Return that an option is for merges by sketches alone, and this is none."""
    if preset.options.drift.least == "sum" or preset.bounds_predictions:
        return None
    return (
        f"`least` {preset.options.drift.least} is for merges by sketches alone and this one walks "
        "on inputs; leave it out, or use `preset` sketches"
    )


def choose_preset(prepared: PreparedMerge) -> Preset:
    """Return the preset that the options name, else the preferred one of those that can be used.

    If the options leave the alignment open and the preset walks from the mean of the networks,
    they are aligned if that helps.

    Args:
        prepared: Experts in one weight space, and the options of their merge.

    Raises:
        OptionError: If the data does not allow the preset, or any, or has no images to change.
    """
    named = prepared.options.preset
    if named is not None:
        tried = [PRESETS[named]]
    else:
        tried = [cls for cls in PRESETS.values() if cls.preference is not None]
    problem = None
    for cls in tried:
        problem = cls.problem(prepared)
        if problem is None:
            preset = cls(prepared)
            # From an expert a walk learns functions, wherever their units are.
            if prepared.options.align is None and preset.start is None:
                preset = cls(align_where_it_helps(prepared))
            _refuse_no_images(preset)
            return preset
    assert problem is not None
    raise OptionError(problem)


def _refuse_no_images(preset: Preset) -> None:
    """Refuse that images are to be changed where a walk learns on none."""
    if preset.options.walk.augment is None:
        return
    learned = [expert for stage in preset.stages for expert in stage.learned]
    if not learned and not preset.kind.isotropic:  # walks toward weights are corrected on inputs
        learned = [*preset.walked_on]
    if not learned:
        raise OptionError(
            f"`augment` changes images that a walk learns on, and preset {preset.name} learns on "
            "no inputs here; leave it out, or use `preset` joint with inputs"
        )
    for expert in map(preset.prepared.with_surrogates, learned):
        shape = expert.inputs.shape if expert.inputs is not None else ()
        if not are_images(shape):
            raise OptionError(
                "expected inputs of shape (channels, height, width) for `augment`, got "
                f"{shape or 'none'} of network {expert.name}; leave it out"
            )


def choose_rule(preset: Preset) -> PickRule:
    """Return the pick rule that the options name, or the best that the data allows.

    Args:
        preset: Preset of the merge.

    Raises:
        OptionError: If the rule needs data that is not there.
    """
    own = _SelectScores(preset.space)
    unlabelled = [expert.name for expert in preset.space if expert.task is None]
    drifts, text = preset.predicts_drifts, preset.options.choose.pick
    if text is None:
        labelled = [name for name in own if name not in unlabelled]
        if not unlabelled:
            text = USUAL
        elif drifts or not labelled:
            text = "equal-drift"
        else:
            text = f"{labelled[0]}>=0.80"
        return parse_pick(text, own)
    rule = parse_pick(text, own)
    problem = rule.problem(unlabelled, drifts or not unlabelled)
    if problem is not None:
        raise OptionError(problem)
    return rule


def zeros_filled(prepared: PreparedMerge) -> list[str]:
    """Return a sentence on the zeros of sparse networks that a merge does not keep.

    Args:
        prepared: Experts in one weight space, and the options of their merge.
    """
    network = prepared.space.network
    matrices = [place for name, place in network.slices.items() if len(network.shapes[name]) > 1]
    matrices = [place for place in matrices if place.stop <= network.n_parameters]
    if not matrices:
        return []
    count: int = sum(place.stop - place.start for place in matrices)

    def zeros(w: Tensor) -> float:
        parts = (part for place in matrices for (part,) in paged.in_parts(w[place]))
        return 1 - sum(int(part.count_nonzero()) for part in parts) / count

    share = {e.name: zeros(e.weights) for e in prepared.space}
    sparse = [name for name, zero in share.items() if zero >= _SPARSE]
    if not sparse or prepared.options.walk.keep_zeros:
        return []
    shares = " and ".join(f"{share[name]:.1%} of those of {name}" for name in sparse)
    common = zeros(~prepared.space.common_zeros)
    return [
        f"{shares} are zero, of the weights in matrices, and the merge fills them; `keep_zeros` "
        f"keeps those that are zero in every network, {common:.1%}"
    ]


class _SelectScores(Mapping[str, float | None]):
    """Score of each expert on its selection split, measured on first use."""

    def __init__(self, space: WeightSpace) -> None:
        self._space = space
        self._known: dict[str, float] = {}

    def __getitem__(self, name: str) -> float | None:
        if name not in list(self):
            raise KeyError(name)
        if self._space[name].task is None:
            return None
        if name not in self._known:
            self._known[name] = self._space[name].score("select")
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter([expert.name for expert in self._space])

    def __len__(self) -> int:
        return len(self._space)

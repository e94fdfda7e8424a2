"""Joint auxiliary preset: networks without inputs answer for those of another task."""

from __future__ import annotations

from dataclasses import replace

from geomerge.data import Inputs
from geomerge.data.batchnorm import has_statistics, statistics_gap
from geomerge.expert import Expert
from geomerge.merging.measuring import inputs_of
from geomerge.merging.prepare import PreparedMerge
from geomerge.merging.presets.joint import JointPreset
from geomerge.merging.presets.registry import preset
from geomerge.networks.batches import are_images
from geomerge.weight_space import WeightSpace

__all__ = ["JointAuxiliaryPreset"]

ALIKE = 0.03  # gap of running statistics up to which the preset is chosen without being named


@preset("joint-auxiliary")
class JointAuxiliaryPreset(JointPreset):
    """Walk toward the functions of all networks, on inputs of some of their tasks.

    A network without inputs answers for those of another task. The answers hold no class of their
    images, but the function of natural images is nearly the same on images of other classes
    (learning without forgetting, Li and Hoiem 2016, arXiv 1606.09282).
    """

    about = "from the mean of all networks toward all functions, on the inputs of some tasks"
    preference = 1

    def __init__(self, prepared: PreparedMerge) -> None:
        super().__init__(_with_inputs_of_others(prepared))

    @classmethod
    def problem(cls, prepared: PreparedMerge) -> str | None:
        """Return what other inputs cannot stand in for: those of one head, or of other shapes."""
        space = prepared.space
        given = [expert for expert in space if expert.inputs is not None]
        if not given:
            return (
                "the joint-auxiliary preset needs inputs of at least one network's task; name them "
                "with `inputs`"
            )
        if space.head != "separate":
            return (
                "the joint-auxiliary preset needs separate heads, since different answers for one "
                f"input contradict each other in a head that is {space.head}; use `head` separate"
            )
        shapes = {expert.inputs.shape for expert in given if expert.inputs is not None}
        if len(shapes) > 1 or not space.network.convolves or not all(map(are_images, shapes)):
            return (
                "the joint-auxiliary preset needs images of one shape and a network that convolves "
                f"them, got inputs of shape {' and '.join(map(str, shapes))}; use another preset"
            )
        if prepared.options.preset == cls.name:
            return None
        return _unlike(prepared)

    @property
    def predicts_drifts(self) -> bool:
        """Whether drifts are measured where the data measures none: on the others' inputs."""
        return True


def _unlike(prepared: PreparedMerge) -> str | None:
    """Return that inputs are not known to be like those of the networks without any.

    Running statistics are of the inputs that a network was trained on.
    """
    space = prepared.space
    inputs = inputs_of(_giver(space))
    for expert in space:
        if expert.inputs is not None:
            continue
        if not has_statistics(expert.network):
            found = "and without BatchNorm that is not known"
        elif (gap := statistics_gap(expert.network, expert.weights, inputs)) > ALIKE:
            found = f"and running statistics differ by {gap:.2g}, more than {ALIKE}"
        else:
            continue
        return (
            f"the joint-auxiliary preset needs inputs like those that {expert.name} was trained "
            f"on, {found}; use `preset` joint-auxiliary where they are alike"
        )
    return None


def _giver(space: WeightSpace) -> Expert:
    return next(expert for expert in space if expert.inputs is not None)


def _with_inputs_of_others(prepared: PreparedMerge) -> PreparedMerge:
    """Return the merge in which inputs of the first task with some stand in for missing ones."""
    space = prepared.space
    giver = _giver(space)
    blind = [e.name for e in space if e.inputs is None and e.name not in prepared.surrogates]
    if not blind:
        return prepared
    auxiliary: Inputs = replace(inputs_of(giver), name=f"{giver.name}'s inputs")
    note = (
        f"{giver.name}'s inputs stood in for those of {' and '.join(blind)}: each network answers "
        "for them in its own head"
    )
    measured = has_statistics(space.network) and prepared.options.bn is None
    return replace(
        prepared,
        space=replace(space, bn="re-estimate" if measured else space.bn),
        notes=[*prepared.notes, note],
        surrogates={**prepared.surrogates, **dict.fromkeys(blind, auxiliary)},
    )

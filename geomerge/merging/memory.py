"""Limits on memory: passes of fewer inputs, and a metric whose measurement fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from geomerge.data.batchnorm import BATCH
from geomerge.errors import OptionError
from geomerge.expert import Expert
from geomerge.merging.prepare import PreparedMerge
from geomerge.merging.resident import base_bytes, base_of_run, keep_base
from geomerge.merging.sizes import (
    bytes_of_pass,
    data_bytes,
    forward_bytes,
    input_bytes,
    network_size,
    pass_bytes,
    sketch_bytes,
)
from geomerge.metrics import METRICS
from geomerge.metrics.registry import MetricKind, NetworkSize, cheaper_metrics
from geomerge.networks.factor_form import FactorForm
from geomerge.options import parse_size, replace_options
from geomerge.walks.walk import FunctionWalkOptions
from geomerge.weight_space import WeightSpace

__all__ = ["fit_memory", "ways"]

_NUMBER = 4  # bytes
_COPIES = 14  # copies of the weights at most: a walk, its state in writing, the path reopened
_EVALUATED = 1000  # inputs normalised at a time
_PASS = 2 * 10**9  # bytes of a pass's activations without a limit
_LAYERWISE = {FactorForm.WHOLE: (False, True), FactorForm.DIAGONAL: (False,)}  # others are always
_HALF = "eigenvectors in bfloat16"
_FORMS = {  # what is said of each
    FactorForm.WHOLE: "",
    FactorForm.HALF: f", {_HALF}, with which steps take longer",
    FactorForm.FILES: f", {_HALF} in temporary files, which every step reads",
    FactorForm.BLOCKS: ", of wide factors only four diagonal blocks, which keep less of a function",
    FactorForm.DIAGONAL: ", of it only the diagonal, which keeps far less of a function",
}


def fit_memory(prepared: PreparedMerge, work: Path | None = None) -> PreparedMerge:
    """Choose the number of inputs in one pass, and the form of the metric, so that a merge fits.

    The first that fits is taken of: the metric as usual; the same, some layers after the others;
    its factors in the forms of :class:`~geomerge.networks.factor_form.FactorForm`; the next cheaper
    metric. The size of a pass changes results by rounding only. A note states the choice.

    Args:
        prepared: Merge with everything loaded that it will use.
        work: Folder of the run's state, which holds what an interrupted run had measured.

    Returns:
        The merge with networks that pass as many inputs at a time, and a metric that fits.

    Raises:
        OptionError: If even passes of one input do not fit.
    """
    space, options = prepared.space, prepared.options
    walked = _walked(space)
    if not walked:
        return prepared
    if options.machine.memory is None:
        return _in_usual_passes(prepared, walked)
    limit = parse_size(options.machine.memory)
    plan = _plan(prepared, walked, base_of_run(work))
    fixed, single, rungs = plan.fixed, plan.single, plan.rungs
    rung = next((rung for rung in rungs if fixed + rung.needs + single <= limit), None)
    if rung is None:
        least = min(rung.needs for rung in rungs) + fixed + single
        raise OptionError(
            f"`memory` {options.machine.memory} is too little: with networks and data loaded "
            f"{plan.held / 1e9:.2f} GB are held, and this merge needs {least / 1e9:.2f} GB at "
            "least; give that"
        )
    keep_base(work, plan.base)
    room, moments = limit - fixed - rung.needs, None
    if rung.layerwise:
        moments = (room - single) // 2  # beside those of the widest layer, which are in the needs
        room -= moments
    most = min(FunctionWalkOptions.batch, room // single)
    note = (
        f"`memory` {options.machine.memory}: {most} inputs per pass, metric {rung.metric}"
        f"{rung.words}, {(limit - room + most * single) / 1e9:.2f} GB at most"
    )
    if rung not in rungs[:2]:
        wanted = fixed + rungs[0].needs + single
        note += f" ({options.measure.metric} as usual would need {wanted / 1e9:.2f} GB)"
    return replace(
        prepared,
        space=space.limited(most, moments, rung.form),
        options=replace_options(options, metric=rung.metric),
        notes=[*prepared.notes, note],
    )


class _Rung(NamedTuple):
    """Way to measure and hold a metric, and the bytes that it needs.

    Attributes:
        metric: Name of the metric.
        form: Form of its Kronecker factors.
        layerwise: Whether it is measured some layers after the others.
        needs: Bytes of its measurement and of what is held of it.
    """

    metric: str
    form: FactorForm
    layerwise: bool
    needs: int

    @property
    def words(self) -> str:
        """What is said of it after the name of the metric."""
        return (", some layers after the others" if self.layerwise else "") + _FORMS[self.form]


class _Plan(NamedTuple):
    """Bytes that a merge needs in each way.

    Attributes:
        base: Bytes of the process before the merge.
        held: Those with networks and data.
        fixed: Those that the merge holds in every way.
        single: Bytes of each input in a pass.
        rungs: Ways to hold a metric, in the order in which they are tried.
    """

    base: int
    held: int
    fixed: int
    single: int
    rungs: list[_Rung]


def _plan(prepared: PreparedMerge, walked: Sequence[Expert], base: int) -> _Plan:
    """Return the bytes that a merge needs in each way.

    Args:
        prepared: Merge with everything loaded that it will use.
        walked: Experts with inputs.
        base: Bytes of the process.
    """
    space, options = prepared.space, prepared.options
    held = base + _copied(space)
    sizes = [network_size(expert, bytes_of_pass(expert)) for expert in walked]
    single = max(size.pass_bytes for size in sizes)
    normalised = max(input_bytes(expert) for expert in walked) * 2 * _EVALUATED
    fixed = held + _COPIES * _NUMBER * space.network.n + normalised
    if space.bn == "re-estimate":  # its passes decide the statistics, so they stay as they are
        fixed += BATCH * max(forward_bytes(expert) for expert in walked)
    order = cheaper_metrics(options.measure.metric)
    if options.walk.learn is not None:  # a damping needs something to damp
        order = [name for name in order if not METRICS[name].isotropic]
    rungs = [rung for name in order for rung in _rungs(METRICS[name], sizes)]
    return _Plan(base, held, fixed, single, rungs)


def ways(prepared: PreparedMerge) -> dict[str, tuple[int, int]]:
    """Return the least limits of the ways in which a merge keeps one, by what notes say of them.

    Args:
        prepared: Merge with everything loaded that it will use, with inputs.

    Returns:
        Of each way in the order in which they are tried, the least limit in bytes, with which a
        pass has one input, and the bytes of each further input.
    """
    plan = _plan(prepared, _walked(prepared.space), base_bytes())
    return {
        f"{rung.metric}{rung.words}": (plan.fixed + rung.needs + plan.single, plan.single)
        for rung in plan.rungs
    }


def _walked(space: WeightSpace) -> list[Expert]:
    return [expert for expert in space if expert.inputs is not None]


def _rungs(kind: MetricKind, sizes: Sequence[NetworkSize]) -> list[_Rung]:
    """Return the ways to hold a metric, in the order in which they are tried."""
    found = []
    for form in kind.forms:
        for layerwise in _LAYERWISE.get(form, (True,)):
            those = [size._replace(layerwise=layerwise, form=form) for size in sizes]
            found.append(_Rung(kind.name, form, layerwise, kind.measuring_bytes(those)))
    return found


def _in_usual_passes(prepared: PreparedMerge, walked: Sequence[Expert]) -> PreparedMerge:
    """Return a merge whose passes stay within two gigabytes, the limit by default."""
    single = pass_bytes(walked)
    if single * _EVALUATED <= _PASS:
        return prepared
    most = max(1, _PASS // single)
    if most >= FunctionWalkOptions.batch:
        return prepared
    note = f"large activations: passes of {most} inputs, {most * single / 1e9:.1f} GB each"
    return replace(prepared, space=prepared.space.limited(most), notes=[*prepared.notes, note])


def _copied(space: WeightSpace) -> int:
    """Return the bytes of a further copy of everything that is loaded, which the merge makes."""
    loaded = data_bytes(space) + sketch_bytes(space)
    return loaded + _NUMBER * space.network.n * (len(space) + 1)

"""Import names of version 0.1 that have changed: they work for one version, with a warning."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["MODULES", "NAMES", "install", "old_names"]

# Modules that are gone, and the modules that hold their names now.
MODULES = {
    "architectures": "networks.architectures",
    "baselines": "training",
    "budgets": "walks.constraints",
    "checking": "merging.check",
    "comparing": "comparison",
    "comparing.compare": "comparison.compare",
    "comparing.context": "comparison.context",
    "comparing.registry": "comparison.registry",
    "crossover": "evaluation.pick evaluation.search evaluation.accuracy",
    "directions": "walks.objectives",
    "energy": "paths.energy",
    "learning": "walks.damping",
    "leg": "paths.leg",
    "merging.answers": "merging.analysis",
    "merging.candidates": "merging.stages",
    "merging.monitor": "monitor.progress",
    "merging.plan": "merging.presets.base",
    "merging.relaxing": "merging.relax",
    "merging.sides": "expert weight_space",
    "metric": "metrics",
    "metric.outputs": "metrics.outputs",
    "recording": "paths.leg",
    "relax": "paths.relax",
    "runs.stream_options": "strategies.options",
    "runs.verify": "certificate.verify certificate.claims",
    "sparsifying": "pruning",
    "sparsifying.inspect": "pruning.inspect",
    "sparsifying.measured": "pruning.measure",
    "sparsifying.options": "pruning.options",
    "sparsifying.reconfigure": "pruning.reconfigure",
    "sparsifying.sparsify": "pruning.sparsify",
    "sparsifying.subject": "pruning.problem pruning.cost",
    "sparsifying.walks": "pruning.walk",
    "sparsity": "pruning",
    "sparsity.counting": "pruning.flops",
    "sparsity.export": "pruning.masks",
    "sparsity.masks": "pruning.masks",
    "sparsity.plan": "pruning.plan pruning.plan_file",
    "sparsity.pull": "walks.soft_pull",
    "sparsity.saliency": "pruning.masks",
    "sparsity.shrink": "pruning.shrink",
    "sparsity.units": "pruning.units",
    "sparsity.walk": "walks.plane",
    "statistics": "data.batchnorm",
    "steps.budgets": "steps.constraints",
    "steps.rates": "steps.group_rates",
    "tasks": "data",
    "tasks.task": "data.task",
    "walk": "walks.walk",
    "watching": "monitor",
}

# Names that have changed, by the module that they were imported from; modules too that are still
# there are in this table.
NAMES = {
    "": {
        "Merge": "merging.MergeResult",
        "MergeSettings": "continual.ContinualOptions",
    },
    "budgets": {
        "Budgets": "walks.constraints.Constraints",
        "Kept": "walks.constraints.Constraint",
        "KeptStep": "walks.constraints.ConstrainedStep",
        "LossKept": "walks.constraints.KLConstraint",
        "SketchKept": "walks.constraints.QuadraticConstraint",
    },
    "comparing": {"Row": "comparison.MethodRow"},
    "comparing.compare": {"Row": "comparison.MethodRow"},
    "comparing.registry": {"Found": "comparison.registry.MethodResult"},
    "continual": {
        "MergeSettings": "continual.ContinualOptions",
        "Remembered": "continual.TaskMemory",
        "merge_experience": "continual.merge_expert",
    },
    "directions": {
        "Descent": "walks.objectives.Objective",
        "TowardFunction": "walks.objectives.KLToTeacher",
        "TowardLabels": "walks.objectives.CrossEntropy",
        "TowardMixedOutputs": "walks.objectives.MixupDrift",
        "TowardOutputs": "walks.objectives.OutputDrift",
    },
    "evaluation": {
        "evaluate_file": "evaluation.evaluate.evaluate_file",
        "open_network": "evaluation.evaluate.open_network",
    },
    "merging": {
        "CurvePoint": "merging.MergeCurvePoint",
        "Merge": "merging.MergeResult",
        "Row": "merging.ResultRow",
    },
    "merging.plan": {
        "Plan": "merging.presets.base.Preset",
        "Stage": "merging.presets.base.Stage",
    },
    "merging.sides": {"Side": "expert.Expert", "Sides": "weight_space.WeightSpace"},
    "metric": {"Spectrum": "metrics.EigenCoordinates"},
    "sparsifying.measured": {
        "CurvePoint": "pruning.measure.PruneCurvePoint",
        "Row": "pruning.measure.PruneRow",
    },
    "sparsity.pull": {"PullWalk": "walks.soft_pull.PullWalkOptions"},
    "sparsity.walk": {"PlaneWalk": "walks.plane.PlaneWalkOptions"},
    "sparsifying.inspect": {"inspect_network": "pruning.inspect.inspect"},
    "sparsifying.sparsify": {"Sparsified": "pruning.sparsify.SparsifyResult"},
    "sparsifying.subject": {"Subject": "pruning.problem.PruneProblem"},
    "sparsifying.walks": {"Walked": "pruning.walk.PruneWalk"},
    "runs.stream_options": {"NAMES": "strategies.options.STREAMS"},
    "strategies": {
        "MergeSettings": "continual.ContinualOptions",
    },
    "walk": {
        "FunctionWalk": "walks.walk.FunctionWalkOptions",
        "WeightWalk": "walks.walk.WeightWalkOptions",
    },
}

_UNTIL = "the old name works in this version only"


def old_names(module: str, stacklevel: int = 2) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a module that finds its names of version 0.1.

    Args:
        module: Dotted name of the module.
        stacklevel: Number of frames from the warning up to the code that uses the name.
    """
    short = module.removeprefix("geomerge").removeprefix(".")

    def getattr_(name: str) -> Any:
        home, thing = (None, None) if name.startswith("__") else _find(short, name)
        if home is None:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        message = f"{module}.{name} is {home} now; {_UNTIL}"
        warnings.warn(message, DeprecationWarning, stacklevel=stacklevel)
        return thing

    return getattr_


def install() -> None:
    """Let ``import geomerge.metric`` find what has taken the old module's place."""
    if not any(isinstance(finder, _OldModules) for finder in sys.meta_path):
        sys.meta_path.append(_OldModules())


class _OldModules(MetaPathFinder, Loader):
    """Finder and loader of removed modules, the last on the list of finders."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.removeprefix("geomerge.") not in MODULES:
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def exec_module(self, module: ModuleType) -> None:
        now = " or ".join(f"geomerge.{one}" for one in _homes(module.__name__))
        warnings.warn(f"{module.__name__} is {now} now; {_UNTIL}", DeprecationWarning, stacklevel=2)
        vars(module)["__getattr__"] = old_names(module.__name__)


def _homes(module: str) -> list[str]:
    return MODULES.get(module.removeprefix("geomerge."), "").split()


def _find(module: str, name: str) -> tuple[str | None, Any]:
    """Return the present dotted name of a module's old name, and the object; or None twice."""
    homes = [(home, name) for home in _homes(module)]
    if name in NAMES.get(module, {}):
        home, _, changed = NAMES[module][name].rpartition(".")
        homes.insert(0, (home, changed))
    for home, attribute in homes:
        found = vars(importlib.import_module(f"geomerge.{home}")).get(attribute)
        if found is not None and not isinstance(found, ModuleType):
            public = attribute in importlib.import_module("geomerge").__all__
            return f"geomerge{'' if public else '.' + home}.{attribute}", found
    inner = f"{module}.{name}".removeprefix(".")
    if inner in MODULES:
        return f"geomerge.{_homes(inner)[0]}", importlib.import_module(f"geomerge.{inner}")
    return None, None

"""Import names that the documentation of version 0.1 had: they work, with a warning."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import warnings

import pytest

from geomerge.renamed import MODULES, NAMES

DOCUMENTED = {
    "": (
        "Checkpoint GeomergeError KroneckerMetric Merge MergeOptions Network Sketch Task "
        "WeightPath from_pretrained load_checkpoint load_task make_sketch merge progress "
        "save_checkpoint"
    ),
    "alignment": "Alignment METHODS align permuted_metric",
    "architectures": "NAMED call_factory create_network rebuild_network recognise",
    "baselines": "fine_tune straight_line",
    "budgets": "Budgets Kept KeptStep LossKept SketchKept",
    "checking": "Check check_merge",
    "comparing": "CompareOptions Comparison METHODS Row compare",
    "comparing.compare": "",
    "comparing.context": "Context NotApplicableError",
    "comparing.registry": "Found GROUPS Method Predictor method registered",
    "continual": (
        "InputMoments MergeReport MergeSettings Remembered fit_memory measure_moments "
        "merge_experience remember"
    ),
    "continual.report": "PathPoint",
    "crossover": (
        "PICKS PickRule Score accuracy parse_pick right_by_class search share_right "
        "shortest_of_best"
    ),
    "directions": (
        "Descent TowardFunction TowardLabels TowardMixedOutputs TowardOutputs divergence "
        "log_probabilities"
    ),
    "energy": "Manifold PathMeasure REFINE fine measure_path",
    "errors": "CheckpointError NumericalError OptionError QPError RunError TaskError",
    "evaluation": "evaluate_file open_network",
    "learning": "DampingLearner",
    "leg": "Leg StepRecord read_point",
    "merging": "CurvePoint Merge MergeOptions Row Seen comparison curves look_at merge",
    "merging.candidates": "Candidate",
    "merging.monitor": "Progress",
    "merging.plan": "Plan Stage",
    "merging.relaxing": "LegRelaxed",
    "merging.sides": "Side Sides",
    "metric": (
        "EuclideanMetric ExactMetric GramMetric KroneckerMetric METRICS MaskedMetric Metric Sketch "
        "Spectrum combine exact_metric functional_change gram_metric load_sketch lower make_sketch "
        "measure_metric output_map save_sketch"
    ),
    "metric.outputs": "OUTPUTS",
    "recording": "record_leg",
    "relax": "Relaxation Relaxed relax_path",
    "report": "draw_curves draw_plane merge_report write_examples",
    "runs": "run_merge run_reconfigure run_sparsify",
    "runs.compare": "run_compare",
    "runs.stream": "run_stream",
    "runs.stream_options": "NAMES StreamOptions",
    "runs.verify": "Claim Verification verify_run",
    "sparsifying": "",
    "sparsifying.inspect": "inspect_network inspect_weights",
    "sparsifying.measured": "CurvePoint Row",
    "sparsifying.options": "SparsifyOptions",
    "sparsifying.reconfigure": "Configuration reconfigure",
    "sparsifying.sparsify": "Sparsified sparsify",
    "sparsifying.subject": "Cost Subject",
    "sparsifying.walks": "Walked",
    "sparsity": "",
    "sparsity.counting": "Counts Sizes count",
    "sparsity.export": "prune_form",
    "sparsity.masks": "parse_nm prunable removable sparsity weakest zeros",
    "sparsity.plan": "PlanStep Wanted check_plan load_plan parse_removals resolve",
    "sparsity.pull": "PullWalk walk_by_pull",
    "sparsity.saliency": "SALIENCIES saliency",
    "sparsity.shrink": "export_plain removed_units shrink",
    "sparsity.units": "FoundUnits Units find_units traced_units unit_named",
    "sparsity.walk": "PlaneWalk Prescription Stage walk_toward_plane",
    "statistics": "has_statistics re_estimate",
    "steps": (
        "BudgetStep Compensation QPSolution RateProgram Rates Step budget_step budget_steps "
        "compensate damped_step group_rates precondition preconditioned_move preconditioned_step "
        "solve_qp step_gradient trust_region_step"
    ),
    "steps.budgets": "BudgetStep budget_step budget_steps nonzero_rows",
    "steps.compensation": "Compensation compensate",
    "steps.qp": "QPSolution solve_qp",
    "steps.rates": "RateProgram Rates check_progress group_rates",
    "steps.trust_region": (
        "Step damped_step precondition preconditioned_move preconditioned_step trust_region_step"
    ),
    "strategies": (
        "GeodesicMerge GeodesicMergePlugin MergeCSVLogger MergeReport MergeSettings "
        "maybe_load_checkpoint merge_metrics save_checkpoint"
    ),
    "tasks": (
        "Inputs Normalisation Split Task as_they_are check_normalised load_task make_task "
        "normalisation_of parse_normalisation recorded_normalisation split_normalisations"
    ),
    "tasks.task": "",
    "testing": (
        "dense_christoffel dense_jacobian dense_kronecker dense_metric geodesic_between "
        "geodesic_from path_energy path_length"
    ),
    "testing.geodesics": "",
    "training": "train train_checkpoint",
    "walk": (
        "FunctionWalk WalkPoint WeightWalk walk_straight walk_toward_function walk_toward_weights"
    ),
    "watching": "log_lines progress sparkline write_line",
}
# Names without a successor of the same form.
DROPPED = {"comparing.registry": "registered", "metric": "lower"}


def imported(dotted: str) -> object:
    """What a dotted name that a warning gives stands for."""
    module, _, name = dotted.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except AttributeError:
        return importlib.import_module(dotted)


@pytest.mark.parametrize("module", DOCUMENTED)
def test_documented_names_still_work(module: str) -> None:
    full = f"geomerge.{module}".removesuffix(".")
    dropped = DROPPED.get(module, "").split()
    for name in DOCUMENTED[module].split():
        if name in dropped:
            continue
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            found = getattr(importlib.import_module(full), name)
        said = [str(one.message) for one in seen if one.category is DeprecationWarning]
        assert bool(said) == (module in MODULES or name in NAMES.get(module, ())), name
        now = [message.split(" ")[2] for message in said if message.startswith(f"{full}.{name} ")]
        assert all(imported(one) is found for one in now)


def test_old_modules_are_imported_with_a_warning() -> None:
    code = (
        "import geomerge.metric\n"
        "from geomerge.sparsity.shrink import shrink\n"
        "import geomerge.pruning.shrink\n"
        "assert shrink is geomerge.pruning.shrink.shrink\n"
        "assert geomerge.metric.load_sketch is geomerge.metrics.load_sketch\n"
    )
    words = [sys.executable, "-W", "always::DeprecationWarning", "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    warned = re.findall(r"^<string>:(\d): DeprecationWarning: (\S+) is ", done.stderr, re.M)
    assert {*warned} >= {
        ("1", "geomerge.metric"), ("2", "geomerge.sparsity.shrink"),
        ("2", "geomerge.sparsity.shrink.shrink"), ("5", "geomerge.metric.load_sketch"),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["geomerge.nothing", "geomerge.metric.nothing"])
def test_unknown_names_are_unknown(name: str) -> None:
    with pytest.raises(ModuleNotFoundError, match=name):
        importlib.import_module(name)
    module, _, attribute = name.rpartition(".")
    with pytest.raises(AttributeError, match=f"'{module}' has no attribute 'nothing'"):
        getattr(importlib.import_module(module), attribute)

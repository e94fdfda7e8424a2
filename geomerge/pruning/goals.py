"""What the options want gone -> the stages of a walk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from geomerge.errors import OptionError
from geomerge.pruning.flops import Sizes
from geomerge.pruning.gradual_removal import rate_stages
from geomerge.pruning.masks import SparsityPattern, parse_nm, prunable, sparsity
from geomerge.pruning.plan import PlanStep, check_plan, parse_removals, resolve
from geomerge.pruning.problem import STEP_PASSES, Subject
from geomerge.pruning.removal import Removal, removal_stages
from geomerge.pruning.schedule import weight_stages
from geomerge.pruning.shrink import removed_units
from geomerge.pruning.units import unit_named
from geomerge.walks.constraints import KLConstraint
from geomerge.walks.plane import Stage
from geomerge.walks.state import WalkState

__all__ = ["removal_of", "stages_of", "unit_stages"]

BUDGET_INPUTS = 1000


def stages_of(subject: Subject, state: WalkState | None = None) -> list[Stage]:
    """Return the stages toward what the options want gone.

    Args:
        subject: The network.
        state: Where the stages remember what they took.

    Returns:
        The stages; they remember what they took, so each list serves one walk.

    Raises:
        OptionError: If a layer would become empty, is unknown, or nothing is left to remove.
    """
    options, goal = subject.options, subject.options.goal()
    if goal in ("sparsity", "nm"):
        if options.budget is not None:
            raise OptionError("--budget bounds the rates of units; give --remove, or leave it out")
        nm = None if options.nm is None else parse_nm(options.nm)
        share = options.sparsity or 0.0
        now = sparsity(subject.w, prunable(subject.network))
        if goal == "sparsity" and share <= now:
            raise OptionError(
                f"{100 * now:.1f} % of the weights are zero already, expected a --sparsity over "
                f"that, got {share}; ask for more"
            )
        return weight_stages(
            subject.network, subject.w, SparsityPattern(share, options.per_layer, nm),
            options.stages, options.saliency, state,
        )  # fmt: skip
    gone = removed_units(subject.network, subject.w, subject.units)
    if goal == "remove":
        wanted = parse_removals(options.remove)
        check_plan([PlanStep("--remove", wanted, {})], subject.units, gone)
        removal = removal_of(subject, wanted, gone)
    else:
        removal = _size_removal(subject, goal, gone)
    return unit_stages(subject, removal, gone, state)


def unit_stages(
    subject: Subject,
    removal: Removal,
    gone: Mapping[str, Sequence[int]],
    state: WalkState | None = None,
) -> list[Stage]:
    """Return the stages of a removal, chosen as the options say.

    Args:
        subject: The network.
        removal: What shall go.
        gone: By :attr:`Units.layer`, the units that are zero where the walk starts.
        state: Where the stages remember what they took.
    """
    options = subject.options
    if options.choice != "rates":
        return removal_stages(subject.network, removal, gone, options.stages, options.choice, state)
    kept = class_budgets(subject) if options.budget is not None else []
    if kept:
        subject.cost.add(STEP_PASSES * options.stages * min(BUDGET_INPUTS, len(subject.manifold)))
    allowed = options.budget or float("inf")
    return rate_stages(subject.network, removal, gone, options.stages, kept, allowed, state)


def class_budgets(subject: Subject) -> list[KLConstraint]:
    """Return what each class has lost: mean KL to the network as it came, which also names it."""
    sample = subject.manifold.sample(BUDGET_INPUTS, subject.options.seed)
    subject.cost.add(len(sample))
    x = sample.batch(slice(None))
    log_p = subject.network.logits(subject.w, x).log_softmax(dim=1)
    labels = log_p.argmax(dim=1)
    return [
        KLConstraint(f"class {int(k)}", subject.network, x[labels == k], log_p[labels == k])
        for k in labels.unique()
    ]


def removal_of(
    subject: Subject,
    wanted: Mapping[str, int | float | tuple[int, ...]],
    gone: Mapping[str, Sequence[int]],
) -> Removal:
    """Return what shall go, from counts, shares or lists by layer.

    Args:
        subject: The network.
        wanted: By the name of a layer.
        gone: By :attr:`Units.layer`, units that are zero already.

    Raises:
        OptionError: If a layer is unknown or would become empty.
    """
    units, candidates, counts = {}, {}, {}
    for layer, what in wanted.items():
        one = unit_named(subject.units, layer)
        if one.layer in units:
            raise OptionError(
                f"{layer!r} has the same units as another layer that was named, "
                f"{' and '.join(one.layers)}; name one of them"
            )
        there = [k for k in range(one.count) if k not in set(gone.get(one.layer, ()))]
        found = resolve(what, there)
        chosen = there if isinstance(found, int) else list(found)
        count = found if isinstance(found, int) else len(found)
        if count >= len(there):
            raise OptionError(
                f"expected fewer than the {len(there)} units that {layer} has, got {count} to "
                "remove; leave at least one"
            )
        units[one.layer], candidates[one.layer], counts[one.layer] = one, chosen, count
    for layer in gone:
        units.setdefault(layer, subject.units[layer])
        candidates.setdefault(layer, [])
        counts.setdefault(layer, 0)
    return Removal(units, candidates, counts)


def _size_removal(subject: Subject, goal: str, gone: Mapping[str, Sequence[int]]) -> Removal:
    units = {one.layer: one for one in subject.units.values()}
    if not units:
        raise OptionError(
            "the network has no layer whose units can be removed; use --sparsity instead"
        )
    sizes = Sizes(subject.network, units, subject.manifold.batch(slice(0, 1)))
    what = "flops" if goal == "flops" else "parameters"

    def size(removed: Mapping[str, int]) -> int:
        return int(getattr(sizes.without(removed), what))

    whole = size({layer: len(found) for layer, found in gone.items()})
    share: float = getattr(subject.options, goal)
    candidates = {layer: list(range(one.count)) for layer, one in units.items()}
    return Removal(units, candidates, None, size, round((1 - share) * whole))

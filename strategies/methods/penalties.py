"""Penalties on change: elastic weight consolidation, synaptic intelligence, distillation."""

from __future__ import annotations

from geomerge.strategies.learner import KeptMemory, Learner, make_strategy
from geomerge.strategies.registry import StreamCase, stream_method

__all__ = ["ewc", "lwf", "si"]


@stream_method("ewc", "penalties", "elastic weight consolidation (Kirkpatrick et al., PNAS 2017)")
def ewc(case: StreamCase) -> Learner:
    """Return EWC; lambda is that of the sum over all earlier experiences."""
    from geomerge.strategies.avalanche import EWCPlugin, Naive

    strength = case.options.baselines.ewc_lambda
    plugin = EWCPlugin(strength)
    strategy, pace = make_strategy(case.training, Naive, plugin)

    def examples() -> int:
        return sum(pace.examples) // case.training.epochs

    def kept() -> KeptMemory:
        stored = [plugin.saved_params, plugin.importances]
        tensors = [p.data for kind in stored for one in kind.values() for p in one.values()]
        return KeptMemory(sum(t.nbytes for t in tensors), labels=examples())

    about = f"elastic weight consolidation, lambda {strength:g}"
    return Learner(strategy, pace, about, kept, lambda: float(examples()))


@stream_method("si", "penalties", "synaptic intelligence (Zenke et al., ICML 2017)")
def si(case: StreamCase) -> Learner:
    """Return synaptic intelligence."""
    from geomerge.strategies.avalanche import Naive
    from geomerge.strategies.baselines import SynapticIntelligence

    strength = case.options.baselines.si_lambda
    plugin = SynapticIntelligence(strength)
    strategy, pace = make_strategy(case.training, Naive, plugin)

    def kept() -> KeptMemory:
        stored = [*plugin.ewc_data, plugin.syn_data["cum_trajectory"]]
        tensors = [p.data for kind in stored for p in kind.values()]
        examples = sum(pace.examples) // case.training.epochs
        return KeptMemory(sum(t.nbytes for t in tensors), labels=examples)

    return Learner(strategy, pace, f"synaptic intelligence, strength {strength:g}", kept)


@stream_method("lwf", "penalties", "learning without forgetting (Li and Hoiem, ECCV 2016)")
def lwf(case: StreamCase) -> Learner:
    """Return distillation from the network as it was when the experience came; nothing is kept."""
    from geomerge.strategies.avalanche import LwFPlugin, Naive

    alpha = case.options.baselines.lwf_alpha
    plugin = LwFPlugin(alpha=alpha, temperature=2)
    strategy, pace = make_strategy(case.training, Naive, plugin)
    return Learner(strategy, pace, f"learning without forgetting, alpha {alpha:g}")

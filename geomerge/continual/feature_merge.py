"""Merge of an expert in feature space, with a head in closed form from class statistics.

The head leaves the merge: it is the linear discriminant of class means and covariance. The layers
below become the mean of the network before and the expert, each weighted by the Kronecker metric
of its features, and the statistics of old classes are carried to the new features. The network
before is a candidate too, for which nothing has to be carried; the better of both by predicted
accuracy is the result.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from geomerge.continual.class_statistics import (
    ClassStatistics,
    measure_statistics,
)
from geomerge.continual.feature_map import FeatureMap, fit_feature_map
from geomerge.continual.feature_memory import (
    SHRINKAGES,
    FeatureMemory,
    discriminants,
    fit_feature_memory,
)
from geomerge.continual.image_views import class_views, map_views
from geomerge.continual.kronecker_mean import kronecker_mean
from geomerge.continual.memory import Experience, in_precision
from geomerge.continual.memory_limit import summed
from geomerge.continual.options import ContinualOptions
from geomerge.data import Inputs
from geomerge.data.batchnorm import has_statistics, re_estimate
from geomerge.errors import NumericalError, OptionError
from geomerge.metrics import KroneckerMetric
from geomerge.metrics.kronecker.estimate import estimate_kronecker
from geomerge.networks.network import Network

__all__ = [
    "FeatureCandidate",
    "FeatureCase",
    "FeatureMerge",
    "merge_features",
]

_BATCH = 500
_SKETCHED = 1000  # inputs of a pass for the metric
_MAPPED = 2000  # inputs on which the map of features is fitted, times their views
_DRAWN = 200  # features of each class by which accuracy is predicted
_HELD_OUT = 5  # one of so many examples scores the shrinkage


@dataclass(frozen=True)
class FeatureCase:
    """What a merge in feature space starts from; weights are those below the classifier.

    Attributes:
        network: Network whose outputs are the features.
        start: Weights of the network before, shape (n,).
        expert: Weights of the expert, shape (n,).
        experience: Inputs and labels of the experience.
        free: Mask of the weights that may move, shape (n,).
    """

    network: Network
    start: Tensor
    expert: Tensor
    experience: Experience
    free: Tensor


@dataclass(frozen=True)
class FeatureCandidate:
    """A network that the merge may end at.

    Attributes:
        name: ``"before"``, the network before, or ``"mean"``.
        weights: Weights, shape (n,).
        statistics: Statistics of all classes in its features.
        right: Number of held-out examples right with each shrinkage, over all tasks.
        predicted: Predicted accuracy: the mean over old classes of the share of features, drawn
            from their Gaussians, that the discriminant classifies rightly, and over new ones of
            held-out examples.
        unexplained: Share of its features' variance that the map from the old ones leaves over.
        changed: Share of drawn old features whose class the new discriminant changes.
    """

    name: str
    weights: Tensor
    statistics: ClassStatistics
    right: Tensor
    predicted: float
    unexplained: float = 0.0
    changed: float = 0.0


@dataclass(frozen=True)
class FeatureMerge:
    """Result of a merge in feature space.

    Attributes:
        chosen: The candidate with the best predicted accuracy.
        memory: Memory of all classes and tasks after the merge.
        candidates: All of them.
        notes: Notes, in sentences.
    """

    chosen: FeatureCandidate
    memory: FeatureMemory
    candidates: list[FeatureCandidate]
    notes: list[str] = field(default_factory=list)


def merge_features(
    case: FeatureCase,
    memory: FeatureMemory | None,
    options: ContinualOptions,
    limit: int,
) -> FeatureMerge:
    """Merge an expert into the network before it, in feature space.

    Args:
        case: Network, weights and experience.
        memory: Memory of the classes so far; None in the first experience, whose expert is taken as
            it is.
        options: Options of the merge.
        limit: Largest number of bytes of the memory.

    Raises:
        OptionError: If the labels are missing, or the memory cannot fit.
        NumericalError: If features are not finite.
    """
    if case.experience.labels is None:
        raise OptionError(
            "a head of class statistics needs the labels of the experience; give them"
        )
    merge = _FeatureMerge(case, memory, options, limit)
    if memory is None:
        candidates = [merge.candidate("expert", case.expert)]
    else:
        candidates = [merge.candidate("before", case.start)]
        if memory.metric is not None and merge.moved:
            candidates.append(merge.candidate("mean", merge.mean(memory.metric)))
    chosen = max(candidates, key=lambda c: c.predicted)
    notes = []
    if options.features.views != "none" and not merge.viewed:
        notes.append(
            f"`views` {options.features.views} are of square images, and inputs of "
            f"{case.experience.name} are none; statistics are of the inputs alone"
        )
    return FeatureMerge(chosen, merge.finished(chosen), candidates, notes)


class _FeatureMerge:
    """One merge; the arguments are those of :func:`merge_features`."""

    def __init__(
        self,
        case: FeatureCase,
        memory: FeatureMemory | None,
        options: ContinualOptions,
        limit: int,
    ) -> None:
        self._case, self._memory, self._options, self._limit = case, memory, options, limit
        self._old = None if memory is None else memory.statistics.whole()
        experience = case.experience
        assert experience.labels is not None, "checked before"
        self._inputs, self._head = experience.inputs, experience.head
        self._labels = experience.labels.cpu()
        generator = torch.Generator().manual_seed(options.seed)
        order = torch.randperm(len(self._labels), generator=generator)
        self._held_out = order[: max(1, len(order) // _HELD_OUT)]
        self._fitted = order[len(self._held_out) :]
        self._mapped = order[:_MAPPED]
        self._before: Tensor | None = None  # features of the network before, (N, d)
        self._own: KroneckerMetric | None = None  # of the expert on the experience

    @property
    def viewed(self) -> bool:
        """Whether the inputs have views of the kind that the options ask for."""
        return bool(class_views(self._inputs.batch(slice(0, 1)), self._options.features.views))

    @property
    def moved(self) -> bool:
        """Whether the expert has changed any weight that may move."""
        case = self._case
        return bool(((case.start != case.expert) & case.free).any())

    def mean(self, old: KroneckerMetric) -> Tensor:  # (n,)
        """Return the mean of the network before and the expert."""
        case = self._case
        self._own = self._measured(case.expert)
        metrics = in_precision(old, torch.float32), self._own
        weight = self._options.features.old_weight
        w = torch.where(
            case.free, kronecker_mean(case.start, case.expert, metrics, weight), case.start
        )
        if has_statistics(case.network):
            settled = re_estimate(case.network, w, [self._inputs], self._options.seed)
            w = torch.where(case.free, settled, w)
        return w

    def candidate(self, name: str, w: Tensor) -> FeatureCandidate:
        """Return a candidate, its accuracy predicted."""
        features = self._features(w, self._inputs)
        if not bool(features.isfinite().all()):
            raise NumericalError(
                f"the features of {self._case.experience.name} are not finite, expected finite "
                "ones; train with a smaller learning rate"
            )
        carry, earlier = None, self._old
        if name == "before":
            self._before = features
        elif self._old is not None:
            carry = self._map(w, features)
            earlier = carry.carry(self._old)
        views = self._views(w)
        parts = [features, *views]
        fitted = self._with(earlier, parts, self._fitted)
        # The expert was trained on the held-out examples, but not on other views of them.
        scored = views[0] if views else features
        right = self._right(fitted, scored[self._held_out], self._labels[self._held_out])
        total = right if self._memory is None else self._memory.right + right
        old = self._predicted(fitted, total)
        new_classes = len(self._labels.unique())
        new = float(right[int(total.argmax())]) / len(self._held_out)
        predicted = (sum(old) + new_classes * new) / (len(old) + new_classes)
        whole = self._with(earlier, parts, slice(None))
        unexplained = 0.0 if carry is None else carry.unexplained
        changed = self._changed(whole, total, carry)
        return FeatureCandidate(name, w, whole, total, predicted, unexplained, changed)

    def finished(self, chosen: FeatureCandidate) -> FeatureMemory:
        """Return the memory of a candidate, with the metric of the experience, within the limit."""
        earlier = 0 if self._memory is None else self._memory.tasks
        metric = None
        if bool(self._case.free[: self._case.network.n_parameters].any()):
            # Near the expert in function its metric serves, and measuring another takes as long.
            own = None if chosen.name == "before" else self._own
            metric = self._measured(chosen.weights) if own is None else own
            if self._memory is not None and self._memory.metric is not None:
                old = in_precision(self._memory.metric, torch.float32)
                metric = summed(old, metric, (earlier, 1))
            metric = in_precision(metric, torch.float16)
        memory = FeatureMemory(chosen.statistics.stored(), metric, earlier + 1, chosen.right)
        return fit_feature_memory(memory, self._limit)

    def _with(
        self, old: ClassStatistics | None, views: list[Tensor], rows: Tensor | slice
    ) -> ClassStatistics:
        """Return statistics of the old classes and of the experience, of some rows of all views."""
        labels = self._labels[rows]
        new, *others = (measure_statistics(x[rows], labels, self._head) for x in views)
        counts = new.counts
        for other in others:
            new = new.joined(other)
        new = replace(new, counts=counts)
        return new if old is None else old.joined(new)

    def _views(self, w: Tensor) -> list[Tensor]:  # (N, d) each
        """Return the features of the views of the inputs that are of the same classes."""
        network, kind = self._case.network, self._options.features.views
        found = [
            [network.logits(w, x).cpu() for x in class_views(batch, kind)]
            for batch in self._inputs.batches(_BATCH)
        ]
        return [torch.cat(parts) for parts in zip(*found, strict=True)]

    def _right(self, statistics: ClassStatistics, features: Tensor, labels: Tensor) -> Tensor:
        found = [statistics.discriminant(self._head, s)(features) == labels for s in SHRINKAGES]
        return torch.stack([one.sum() for one in found])

    def _predicted(self, statistics: ClassStatistics, right: Tensor) -> list[float]:
        """Return the share of drawn features of each old class that are classified rightly."""
        if self._old is None:
            return []
        drawn = statistics.draw(_DRAWN, self._options.seed)
        own = {(self._head, int(c)) for c in self._labels.unique()}
        answers = discriminants(statistics, right)
        return [
            float((answers[head](drawn[i]) == c).float().mean())
            for i, (head, c) in enumerate(statistics.keys)
            if (head, c) not in own
        ]

    def _changed(
        self, statistics: ClassStatistics, right: Tensor, carry: FeatureMap | None
    ) -> float:
        """Return the share of drawn old features whose class has changed."""
        if not self._drawn:
            return 0.0
        now, changed = discriminants(statistics, right), []
        for head, (x, before) in self._drawn.items():
            moved = x if carry is None else x @ carry.matrix.T.to(x) + carry.shift.to(x)
            changed.append(float((before != now[head](moved)).float().mean()))
        return sum(changed) / len(changed)

    @cached_property
    def _drawn(self) -> dict[int | None, tuple[Tensor, Tensor]]:  # (N, d), (N,)
        """Features drawn from the old Gaussians of each head, and their classes before."""
        if self._memory is None or self._old is None:
            return {}
        drawn = self._old.draw(_DRAWN, self._options.seed)
        parts = {
            head: (drawn[self._old.rows(head)].flatten(0, 1), answers)
            for head, answers in discriminants(self._old, self._memory.right).items()
        }
        return {head: (x, answers(x)) for head, (x, answers) in parts.items()}

    def _map(self, w: Tensor, features: Tensor) -> FeatureMap:
        """Return the map from the features of the network before to those at w, (N, d)."""
        network, start = self._case.network, self._case.start
        assert self._before is not None, "the first candidate"
        old, new = [self._before[self._mapped]], [features[self._mapped]]
        for index in self._mapped.split(_BATCH):
            for x in map_views(self._inputs.batch(index)):
                old.append(network.logits(start, x).cpu())
                new.append(network.logits(w, x).cpu())
        return fit_feature_map(torch.cat(old), torch.cat(new))

    def _features(self, w: Tensor, inputs: Inputs) -> Tensor:  # (N, d)
        return self._case.network.all_logits(w, inputs.batches(_BATCH)).cpu()

    def _measured(self, w: Tensor) -> KroneckerMetric:
        """Return the metric of the features at w, on layers that may move."""
        network, free, seed = self._case.network, self._case.free, self._options.seed
        sample = self._inputs.sample(self._options.memory.sketch_inputs, seed)
        moving = [name for name, place in network.slices.items() if bool(free[place].any())]
        # One probe an input is an unbiased estimate of the metric of all features.
        return estimate_kronecker(
            network, w, sample.equal_batches(_SKETCHED), "logits", seed, 1, moving
        )

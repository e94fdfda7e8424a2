"""Merges in feature space within a strategy: classifier, layers that may move, report."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from geomerge.continual.feature_memory import FeatureMemory
from geomerge.continual.feature_merge import (
    FeatureCandidate,
    FeatureCase,
    FeatureMerge,
    merge_features,
)
from geomerge.continual.memory import Experience
from geomerge.continual.options import ContinualOptions
from geomerge.continual.report import MergeReport, PathPoint
from geomerge.errors import OptionError
from geomerge.networks.network import Network
from geomerge.strategies.classifier import Classifier, FeatureView, find_classifier, lower_layers
from geomerge.strategies.in_place import write

__all__ = ["FeatureMerger", "report_of"]


class FeatureMerger:
    """Merges experts in feature space, and holds the class statistics.

    Args:
        options: Options of the merges.

    Attributes:
        memory: Memory of the learned classes; None before the first experience.
    """

    def __init__(self, options: ContinualOptions) -> None:
        self.options = options
        self.memory: FeatureMemory | None = None
        self._found: dict[int | None, Classifier] = {}
        self._held: list[nn.Parameter] = []

    def classifier(self, model: nn.Module, x: Tensor, head: int | None) -> Classifier:
        """Return the classifier of a head.

        Raises:
            OptionError: If the model has none that can be written.
        """
        if head not in self._found:
            self._found[head] = find_classifier(model, x, head, self.options.features.classifier)
        return self._found[head]

    def network(self, model: nn.Module, experience: Experience) -> Network:
        """Return the model up to the inputs of its classifier.

        Raises:
            OptionError: If the model has no classifier that can be written.
        """
        x = experience.inputs.batch(slice(0, 2))
        if not isinstance(x, Tensor):
            raise OptionError("a head of class statistics is for inputs of one tensor; give others")
        classifier = self.classifier(model, x, experience.head)
        view = FeatureView(model, classifier, experience.head)
        return Network(view, experience.inputs.device).holding(())

    def begin(self, model: nn.Module, classifier: Classifier, seed: int) -> None:
        """Prepare the training of an expert: hold the lower layers, and restart the classifier.

        Args:
            model: Model that will be trained.
            classifier: Classifier of the experience's head.
            seed: Seed of the classifier's weights.
        """
        if self.memory is None:
            return
        classifier.restart(model, seed)
        for module in lower_layers(model, classifier.whole, self.options.features.moving):
            for p in module.parameters(recurse=False):
                if p.requires_grad:
                    p.requires_grad_(False)
                    self._held.append(p)

    def free(self, model: nn.Module, classifier: Classifier, network: Network) -> Tensor:  # (n,)
        """Return the mask of the weights that may move from the next experience on."""
        lower = set()
        for module in lower_layers(model, classifier.whole, self.options.features.moving):
            own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
            lower |= {id(t) for t in own}
        mask = torch.zeros(network.n, dtype=torch.bool, device=network.device)
        for name, module in model.named_modules():
            parameters = dict(module.named_parameters(name, recurse=False))
            held = {id(p) for p in self._held}
            trained = any(p.requires_grad or id(p) in held for p in parameters.values())
            for label, t in [*parameters.items(), *module.named_buffers(name, recurse=False)]:
                place = network.slices.get("model." + label)
                if place is not None and trained and id(t) not in lower:
                    mask[place] = True
        return mask

    def release(self) -> None:
        """Let the lower layers be trained again."""
        for p in self._held:
            p.requires_grad_(True)
        self._held = []

    def merge(
        self, model: nn.Module, before: dict[str, Tensor], experience: Experience, limit: int
    ) -> FeatureMerge:
        """Merge the trained model into the network before; nothing is written yet.

        Args:
            model: Model with the expert's weights.
            before: Tensors of the network before, by name.
            experience: Inputs and labels.
            limit: Largest number of bytes of the memory.
        """
        network = self.network(model, experience)
        classifier = self._found[experience.head]
        expert = network.initial
        names = {name: name.removeprefix("model.") for name in network.shapes}
        start = network.ravel({name: before[own] for name, own in names.items()})
        free = self.free(model, classifier, network)
        case = FeatureCase(network, start, expert, experience, free)
        options = self.options
        return merge_features(case, self.memory, options, limit)

    def write(self, model: nn.Module, merge: FeatureMerge, experience: Experience) -> None:
        """Write the merged network and the heads of all classes into the model."""
        network = self.network(model, experience)
        named = network.unravel(merge.chosen.weights)
        write(model, {name.removeprefix("model."): t for name, t in named.items()})
        self.memory = merge.memory
        for own, discriminant in self.memory.discriminants().items():
            self._found[own].write(model, discriminant)


def report_of(merge: FeatureMerge, experience: Experience) -> MergeReport:
    """Return the report of a merge in feature space."""
    points = [_point(k, c) for k, c in enumerate(merge.candidates)]
    picked = merge.candidates.index(
        next(c for c in merge.candidates if c.name == merge.chosen.name)
    )
    count = len(experience.inputs)
    return MergeReport(
        task=experience.name, line=[], jumped=0.0, path=points, picked=picked, predicted={},
        damping=0.0, learning_rate=0.0, steps=len(points) - 1, rows=0, solves=0, shortened=0,
        step_bytes=0, passes=0.0, notes=merge.notes,
        used={"inputs": count, "labels": count, "pseudo_inputs": 0, "kept_inputs": 0},
    )  # fmt: skip


def _point(step: int, candidate: FeatureCandidate) -> PathPoint:
    return PathPoint(
        step, 0.0, 1 - candidate.predicted,
        {"features": candidate.unexplained}, {"classes": candidate.changed},
    )  # fmt: skip

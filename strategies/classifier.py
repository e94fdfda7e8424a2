"""Linear classifier at the end of a model: its place, its input features, its weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from geomerge.continual.class_statistics import Discriminant
from geomerge.errors import OptionError, did_you_mean
from geomerge.strategies.avalanche import DynamicModule

__all__ = ["Classifier", "FeatureView", "find_classifier", "lower_layers"]

_NEVER = -1e4  # logit of classes that were not learned


@dataclass(frozen=True)
class Classifier:
    """Place of the classifier of one head in a model.

    Attributes:
        linear: Name of the linear layer.
        whole: Name of the module around it that grows or holds all heads; else that of the layer.
    """

    linear: str
    whole: str

    def write(self, model: nn.Module, discriminant: Discriminant) -> None:
        """Write a discriminant into the layer; classes that were not learned get no input.

        Args:
            model: Model to change.
            discriminant: Discriminant of the classes of this head.
        """
        layer = model.get_submodule(self.linear)
        assert isinstance(layer, nn.Linear), "found as one"
        with torch.no_grad():
            layer.weight.zero_()
            layer.bias.fill_(_NEVER)
            classes = discriminant.classes.to(layer.weight.device)
            layer.weight[classes] = discriminant.weight.to(layer.weight)
            layer.bias[classes] = discriminant.bias.to(layer.bias)

    def restart(self, model: nn.Module, seed: int) -> None:
        """Draw new weights, for an expert to learn: a discriminant's are those of old features.

        Args:
            model: Model to change.
            seed: Seed of the draw.
        """
        layer = model.get_submodule(self.linear)
        assert isinstance(layer, nn.Linear), "found as one"
        bound = layer.in_features**-0.5
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            drawn = torch.empty(layer.weight.shape).uniform_(-bound, bound, generator=generator)
            layer.weight.copy_(drawn)
            layer.bias.zero_()


def find_classifier(
    model: nn.Module,
    x: Tensor,  # (B, ...)
    head: int | None,
    name: str | None = None,
) -> Classifier:
    """Return the classifier of a model: the last linear layer that is called.

    Args:
        model: Model.
        x: Inputs.
        head: Task label; None for a model that takes none.
        name: Name of the layer, or of the module that holds it; None finds it.

    Raises:
        OptionError: If there is no such layer, it has no bias, or layers come after it.
    """
    called: list[tuple[str, nn.Linear, Tensor]] = []
    handles = [
        module.register_forward_hook(
            lambda layer, _, out, label=label: called.append((label, layer, out))
        )
        for label, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    mode = model.training
    try:
        with torch.no_grad():
            out = model.eval()(x) if head is None else model.eval()(x, head)
    finally:
        model.train(mode)
        for handle in handles:
            handle.remove()
    if name is not None:
        inside = [c for c in called if c[0] == name or c[0].startswith(f"{name}.")]
        if not inside:
            known = [label for label, *_ in called]
            raise OptionError(
                f"`classifier` {name!r} is no linear layer that the model calls"
                f"{did_you_mean(name, known)}"
            )
        called = inside
    if not called:
        raise OptionError(
            "a head of class statistics needs a linear layer at the end of the model, and it calls "
            "none; give `head` as 'trained'"
        )
    label, layer, logits = called[-1]
    end = logits.dim() == 2 and isinstance(out, Tensor) and out.shape == logits.shape
    if not end or layer.bias is None:
        what = "is not the end of the model" if not end else "has no bias"
        raise OptionError(
            f"a head of class statistics is written into the last linear layer, and {label!r} "
            f"{what}; name another `classifier`, or give `head` as 'trained'"
        )
    whole = label
    parts = label.split(".")
    for count in range(1, len(parts)):
        around = ".".join(parts[:count])
        if isinstance(model.get_submodule(around), DynamicModule):
            whole = around
            break
    return Classifier(label, whole)


class FeatureView(nn.Module):
    """Model as a function from inputs to features, the inputs of its classifier.

    Args:
        model: Model, copied without its classifier.
        classifier: The classifier.
        head: Task label; None for a model that takes none.
    """

    def __init__(self, model: nn.Module, classifier: Classifier, head: int | None) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        parent, _, last = classifier.whole.rpartition(".")
        # Avalanche's decorator for tasks would pass setattr on to the module that it holds.
        self.model.get_submodule(parent)._modules[last] = _Reached()
        self._head = head

    def forward(
        self,
        x: Tensor,  # (B, ...)
    ) -> Tensor:  # (B, d)
        """Return the features."""
        try:
            self.model(x) if self._head is None else self.model(x, self._head)
        except _FeaturesFound as found:
            return found.features
        raise AssertionError("the classifier was called when it was found")


class _FeaturesFound(Exception):  # noqa: N818  # ends a pass, is no error
    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = features


class _Reached(nn.Module):
    """In the place of the classifier: ends the pass with its inputs."""

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        raise _FeaturesFound(x.flatten(1))


def lower_layers(model: nn.Module, whole: str, moving: float) -> list[nn.Module]:
    """Return the modules with weights below the layers that may move.

    Args:
        model: Model.
        whole: Name of its classifier.
        moving: Share of the layers with weight matrices, from the last one down, that may move.
    """
    own: Mapping[str, nn.Module] = {
        name: module
        for name, module in model.named_modules()
        if name != whole
        and not name.startswith(f"{whole}.")
        and (list(module.parameters(recurse=False)) or list(module.buffers(recurse=False)))
    }
    matrices = [
        name
        for name, module in own.items()
        if any(p.dim() > 1 for p in module.parameters(recurse=False))
    ]
    kept = len(matrices) - round(moving * len(matrices))
    if kept == len(matrices):
        return list(own.values())
    return list(own.values())[: list(own).index(matrices[kept])]

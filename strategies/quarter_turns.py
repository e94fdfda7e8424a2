"""Quarter turns of images as further classes: self-supervised labels in a strategy's training.

An image turned by 0, 90, 180 or 270 degrees is a class of its own, four for each class (Gidaris et
al., ICLR 2018; as labels with the class, Lee et al., ICML 2020). Features of a first experience
with few classes become richer by it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from geomerge.errors import OptionError
from geomerge.networks.wrappers import plain_module
from geomerge.strategies.avalanche import SupervisedPlugin, is_multi_task_module
from geomerge.strategies.classifier import find_classifier
from geomerge.strategies.experience import collect, task_label

__all__ = ["QuarterTurns"]


class QuarterTurns(SupervisedPlugin):  # type: ignore[misc]
    """Plugin that adds the loss of a second classifier, of classes and quarter turns.

    The second classifier shares the features, the inputs of the model's own one, and is gone after
    the experience. Training takes four times as long.
    """

    def __init__(self) -> None:
        super().__init__()
        self._turned: nn.Linear | None = None
        self._group: dict[str, Any] = {}
        self._place = ""
        self._features: list[Tensor] = []
        self._hook: RemovableHandle | None = None

    def before_training_exp(self, strategy: Any, *_: Any, **__: Any) -> None:
        """Make the second classifier.

        Raises:
            OptionError: If inputs are no square images, the model has no classifier, or it has a
                head for each task and the experience several task labels.
        """
        model = plain_module(strategy.model)
        with torch.random.fork_rng(devices=[]):  # a loader draws a seed
            x, _labels = collect(strategy.experience, 2, 0)
        if x.dim() != 4 or x.shape[2] != x.shape[3]:
            raise OptionError(
                f"quarter turns are of square images, got inputs of shape {tuple(x.shape[1:])}; "
                "train without `turns`"
            )
        head = task_label(strategy.experience) if is_multi_task_module(model) else None
        found = find_classifier(model, x.to(strategy.device), head)
        self._place = found.whole
        layer = model.get_submodule(found.linear)
        assert isinstance(layer, nn.Linear), "found as one"
        self._turned = nn.Linear(layer.in_features, 4 * layer.out_features).to(strategy.device)
        strategy.optimizer.add_param_group({"params": list(self._turned.parameters())})
        self._group = strategy.optimizer.param_groups[-1]

    def before_forward(self, strategy: Any, *_: Any, **__: Any) -> None:
        """Listen to the features."""
        self._listen(strategy)

    def before_backward(self, strategy: Any, *_: Any, **__: Any) -> None:
        """Add the loss of the second classifier."""
        assert self._turned is not None
        assert self._hook is not None
        turned = torch.cat([torch.rot90(strategy.mb_x, k, (2, 3)) for k in (1, 2, 3)])
        model = strategy.model
        if is_multi_task_module(plain_module(model)):
            model(turned, strategy.mb_task_id.repeat(3))
        else:
            model(turned)
        features = torch.cat(self._features).flatten(1)
        labels = torch.cat([4 * strategy.mb_y + k for k in range(4)])
        strategy.loss = strategy.loss + nn.functional.cross_entropy(self._turned(features), labels)
        self._deafen()

    def after_training_exp(self, strategy: Any, *_: Any, **__: Any) -> None:
        """Drop the second classifier."""
        groups = strategy.optimizer.param_groups
        groups[:] = [group for group in groups if group is not self._group]
        for p in self._turned.parameters() if self._turned is not None else ():
            strategy.optimizer.state.pop(p, None)
        self._turned, self._group = None, {}

    def _listen(self, strategy: Any) -> None:
        self._deafen()
        layer = plain_module(strategy.model).get_submodule(self._place)
        self._hook = layer.register_forward_pre_hook(
            lambda _, inputs: self._features.append(inputs[0])
        )

    def _deafen(self) -> None:
        if self._hook is not None:
            self._hook.remove()
        self._hook, self._features = None, []

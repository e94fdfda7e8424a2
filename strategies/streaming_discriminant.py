"""Avalanche's streaming discriminant on the features that a first experience has trained."""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import nn

from geomerge.continual.class_statistics import Discriminant
from geomerge.networks.wrappers import plain_module
from geomerge.strategies.avalanche import (
    EvaluationPlugin,
    StreamingLDA,
    SupervisedPlugin,
    TextLogger,
)
from geomerge.strategies.classifier import Classifier, FeatureView, find_classifier
from geomerge.strategies.experience import collect

__all__ = ["StreamingDiscriminant"]


_BATCH = 500


class StreamingDiscriminant(SupervisedPlugin):  # type: ignore[misc]
    """Plugin that fits a streaming discriminant after each experience and writes it.

    The strategy trains the first experience only; after it the features are frozen.

    Args:
        outputs: Number of classes.
    """

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self._outputs = outputs
        self._slda: Any = None
        self._classifier: Classifier | None = None

    @property
    def kept_bytes(self) -> int:
        """Bytes kept between experiences: covariance, means and counts."""
        if self._slda is None:
            return 0
        return sum(t.nbytes for t in (self._slda.Sigma, self._slda.muK, self._slda.cK))

    def after_training_exp(self, strategy: Any, *_: Any, **__: Any) -> None:
        """Fit the discriminant on the experience's features, and write it into the model."""
        model = plain_module(strategy.model)
        if self._slda is None or self._classifier is None:
            x, _labels = collect(strategy.experience, 2, 0)
            self._classifier = find_classifier(model, x.to(strategy.device), None)
            layer = model.get_submodule(self._classifier.linear)
            assert isinstance(layer, nn.Linear), "found as one"
            self._slda = StreamingLDA(
                slda_model=FeatureView(model, self._classifier, None),
                criterion=nn.CrossEntropyLoss(),
                input_size=layer.in_features,
                num_classes=self._outputs,
                train_mb_size=strategy.train_mb_size,
                device=strategy.device,
                evaluator=EvaluationPlugin(loggers=[TextLogger(io.StringIO())]),
            )
        x, labels = collect(strategy.experience, None, 0)
        view = self._slda.model
        for batch, classes in zip(x.split(_BATCH), labels.split(_BATCH), strict=True):
            with torch.no_grad():
                features = view(batch.to(strategy.device))
            for one, c in zip(features, classes.to(strategy.device), strict=True):
                self._slda.fit(one[None], c[None])
        self._slda.predict(self._slda.muK)  # computes Lambda
        seen = self._slda.cK > 0
        weight = self._slda.muK[seen] @ self._slda.Lambda
        bias = -0.5 * (weight * self._slda.muK[seen]).sum(dim=1)
        self._classifier.write(model, Discriminant(seen.nonzero().flatten().cpu(), weight, bias))

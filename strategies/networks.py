"""Multilayer perceptrons and convolutional networks of streams, and their accuracy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from geomerge.errors import OptionError
from geomerge.strategies.avalanche import MultiTaskModule, SimpleMLP, as_multitask
from geomerge.strategies.examples import Examples
from geomerge.strategies.options import StreamTrainingOptions
from geomerge.strategies.streams import Stream

__all__ = ["Convolutions", "accuracy", "make_network"]

_BATCH = 2000


class Convolutions(nn.Module):
    """Four convolutions with BatchNorm, all of them pooled to 2 x 2 cells for a linear classifier.

    The classifier sees every convolution, since lower ones tell classes apart that a first
    experience of few classes has not taught the last. In training, gradients of the classifier go
    into the last.

    Args:
        channels: Channels of an image.
        width: Channels of the first convolution; the second has twice, the others four times as
            many.
        outputs: Number of classes.
    """

    def __init__(self, channels: int, width: int, outputs: int) -> None:
        super().__init__()
        widths = [channels, width, 2 * width, 4 * width, 4 * width]
        self.features = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, count, 3, stride, 1, bias=False), nn.BatchNorm2d(count), nn.ReLU()
            )
            for before, count, stride in zip(widths, widths[1:], (2, 1, 2, 2), strict=False)
        )
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.classifier = nn.Linear(4 * sum(widths[1:]), outputs)

    def forward(
        self,
        x: Tensor,  # (B, channels, side, side)
    ) -> Tensor:  # (B, m)
        """Return the logits of a batch of images."""
        # Twice as fast on processors, with the same function.
        x = x.contiguous(memory_format=torch.channels_last)
        pooled = []
        for block in self.features:
            x = block(x)
            pooled.append(self.pool(x).flatten(1))
        if self.training:
            pooled[:-1] = [features.detach() for features in pooled[:-1]]
        out: Tensor = self.classifier(torch.cat(pooled, dim=1))
        return out


def make_network(stream: Stream, arch: str, seed: int) -> nn.Module:
    """Return a network for a stream, with a head for each task where tasks are known.

    Args:
        stream: Stream to learn.
        arch: Architecture, as the options of a stream name it: ``"mlp-100"``, ``"conv-32"``.
        seed: Seed of the weights.

    Raises:
        OptionError: If the architecture is not known, or the inputs are no images for convolutions.
    """
    kind, width = StreamTrainingOptions(arch=arch).network
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module: Any
        if kind == "conv":
            if len(stream.shape) != 3:
                raise OptionError(
                    f"{arch} takes images of shape (channels, height, width), got inputs of shape "
                    f"{stream.shape}; give `arch` as mlp-100"
                )
            module = Convolutions(stream.shape[0], width, stream.outputs)
        else:
            module = SimpleMLP(
                num_classes=stream.outputs,
                input_size=torch.Size(stream.shape).numel(),
                hidden_size=width,
                hidden_layers=2,
                drop_rate=0,
            )
        network: nn.Module = as_multitask(module, "classifier") if stream.heads else module
        return network


@torch.no_grad()
def accuracy(module: nn.Module, examples: Examples) -> float:
    """Return the share of examples that a network labels correctly.

    Args:
        module: Network; of one with heads, that of the examples' task answers.
        examples: Labelled examples.
    """
    device = next(module.parameters()).device
    training = module.training
    module.eval()
    right = 0
    for start in range(0, len(examples.labels), _BATCH):
        part = slice(start, start + _BATCH)
        x: Tensor = examples.take(part).to(device)
        outputs = module(x, examples.task) if isinstance(module, MultiTaskModule) else module(x)
        right += int((outputs.argmax(dim=1).cpu() == examples.labels[part]).sum())
    module.train(training)
    return right / len(examples.labels)

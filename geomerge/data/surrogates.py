r"""Surrogate inputs, drawn without any data, on which the metric of a network can be measured.

Images are Gaussian fields of several correlation lengths and contrasts. On MNIST and Fashion-MNIST
the Kronecker metric measured on them kept a network's function nearly as well as the metric
measured on its own inputs; several scales mattered, the exact law did not.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from geomerge.data.inputs import Inputs
from geomerge.data.normalisation import PLAIN
from geomerge.errors import TaskError
from geomerge.networks.batches import Batch, batch_size, leaves, map_leaves
from geomerge.networks.network import Network

__all__ = ["SURROGATES", "noise_images", "surrogate_inputs"]

SURROGATES = 10_000
BYTES = 512 * 2**20  # bytes of all surrogate inputs; large images get fewer
SCALES = (1, 3, 5, 7, 11)  # widths of the mean filters, in pixels
CONTRAST = 2.0  # largest deviation of an image, in units of normalised inputs
_SMOOTHINGS = 2
_SEEN = 2000  # inputs whose moments are measured


def noise_images(
    count: int, channels: int, height: int, width: int, generator: torch.Generator
) -> Tensor:  # (count, channels, height, width)
    """Return Gaussian noise, smoothed at several scales, its deviation drawn from 0 to 2.

    Args:
        count: Number of images; each scale has its share.
        channels: Channels, whose noise is correlated by a share that is drawn for each image.
        height: Height in pixels.
        width: Width in pixels.
        generator: Generator of the draws.
    """
    common = torch.rand(count, 1, 1, 1, generator=generator)
    x = torch.randn(count, channels, height, width, generator=generator).mul_((1 - common).sqrt())
    x += torch.randn(count, 1, height, width, generator=generator).mul_(common.sqrt())
    scales = [size for size in SCALES if size <= min(height, width)]
    for place, size in enumerate(scales):
        part = x[place :: len(scales)]
        for _ in range(_SMOOTHINGS if size > 1 else 0):
            padded = nn.functional.pad(part, (size // 2,) * 4, mode="reflect")
            part = nn.functional.avg_pool2d(padded, size, stride=1)
        x[place :: len(scales)] = part
    deviation = x.std(dim=(1, 2, 3), keepdim=True).clamp(min=1e-6)
    return x.mul_(CONTRAST * torch.rand(count, 1, 1, 1, generator=generator) / deviation)


def surrogate_inputs(
    network: Network,
    w: Tensor,  # (n,)
    like: Inputs,
    count: int = SURROGATES,
    seed: int = 0,
) -> Inputs:
    """Draw inputs of the form that a network takes, knowing none of its own.

    Images are noise of several scales, other numbers are Gaussian with mean and deviation of each
    entry of ``like``, and tokens are drawn evenly from the vocabulary of the embedding that takes
    them, but for those that are the same in all of ``like``, such as a start token. Other integers,
    such as masks, are those of ``like``.

    Args:
        network: Network that takes the inputs.
        w: Weights of the network.
        like: Inputs of another task, of the same form.
        count: Number of surrogate inputs; fewer of those that take more than 512 MB.
        seed: Seed of the draws.

    Returns:
        Inputs that need no normalisation, named after what they are, such as "surrogate images".

    Raises:
        TaskError: If the network cannot take inputs of that form.

    Example:
        >>> from torch import nn
        >>> import geomerge as gm
        >>> from geomerge.data.surrogates import surrogate_inputs
        >>> network = gm.Network(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
        >>> digits = gm.load_task("digits").train.inputs
        >>> x = surrogate_inputs(network, network.initial, digits, count=100)
        >>> x.name, len(x), x.shape
        ('surrogate images', 100, (1, 8, 8))
    """
    few = like.batch(slice(0, 4))
    try:
        network.check_inputs(w, few, 0, like.name or "`inputs`")
    except TaskError as error:
        raise TaskError(
            f"surrogate inputs have the form of {like.name or '`inputs`'}, and "
            f"{str(error).partition(';')[0]}; give `inputs` or a sketch of the network that has "
            "none"
        ) from error
    count = min(count, max(1, BYTES // sum(leaf[0].nbytes for leaf in leaves(few))))
    generator = torch.Generator().manual_seed(seed)
    seen = map_leaves(lambda leaf: leaf.cpu(), like.sample(_SEEN, seed).batch(slice(None)))
    rows = torch.randint(batch_size(seen), (count,), generator=generator)
    vocabularies = _vocabularies(network, w, few)
    kinds, drawn = [], []
    for known, size in zip(leaves(seen), vocabularies, strict=True):
        if known.is_floating_point():
            kinds.append("images" if _is_image(known) else "vectors")
            drawn.append(_floats(known, count, generator))
        elif size:
            kinds.append("tokens")
            drawn.append(_tokens(known, size, count, generator))
        else:
            drawn.append(known[rows])
    name = next((k for k in ("tokens", "images", "vectors") if k in kinds), "inputs")
    parts = iter(drawn)
    x = map_leaves(lambda leaf: next(parts), seen)
    return Inputs(x, PLAIN, like.device, f"surrogate {name}", like.dtype)


def _is_image(known: Tensor) -> bool:
    return known.dim() == 4 and min(known.shape[2:]) > 1


def _floats(
    known: Tensor,  # (N, ...)
    count: int,
    generator: torch.Generator,
) -> Tensor:  # (count, ...)
    if _is_image(known):
        channels, height, width = known.shape[1:]
        return noise_images(count, channels, height, width, generator)
    mean, deviation = known.mean(dim=0), known.std(dim=0)
    whole = deviation.square().mean().sqrt()  # of entries that are constant there
    deviation = torch.where(deviation > 0, deviation, whole)
    return mean + deviation * torch.randn(count, *known.shape[1:], generator=generator)


def _tokens(
    known: Tensor,  # (N, ...)
    vocabulary: int,
    count: int,
    generator: torch.Generator,
) -> Tensor:  # (count, ...)
    drawn = torch.randint(vocabulary, (count, *known.shape[1:]), generator=generator)
    return torch.where((known == known[:1]).all(dim=0), known[0], drawn.to(known.dtype))


def _vocabularies(
    network: Network,
    w: Tensor,  # (n,)
    x: Batch,
) -> list[int]:
    """Return for each tensor of a batch the entries of the embedding that takes it.

    Only the largest of the embeddings counts: smaller ones take segments and the like, and have 0.
    """
    sizes = dict.fromkeys((leaf.data_ptr() for leaf in leaves(x)), 0)

    def see(module: nn.Module, given: tuple[Any, ...]) -> None:
        assert isinstance(module, nn.Embedding)
        place = given[0].data_ptr() if given and isinstance(given[0], Tensor) else None
        if place in sizes:
            sizes[place] = max(sizes[place], module.num_embeddings)

    with ExitStack() as hooks:
        for module in network.module.modules():
            if isinstance(module, nn.Embedding):
                hooks.enter_context(module.register_forward_pre_hook(see))
        network.logits(w, x)
    largest = max(sizes.values())
    found = [sizes[leaf.data_ptr()] for leaf in leaves(x)]
    return [size if size == largest else 0 for size in found]

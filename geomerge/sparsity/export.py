"""Weights with zeros -> the form of ``torch.nn.utils.prune``: a tensor and its mask."""

from __future__ import annotations

import torch
from torch import Tensor

from geomerge.errors import OptionError
from geomerge.network import Network

__all__ = ["prune_form"]


def prune_form(
    network: Network,
    w: Tensor,  # (n,)
    kept: Tensor,  # (n,), bool
) -> dict[str, Tensor]:
    """Return a state dict as ``torch.nn.utils.prune`` makes them.

    A tensor with weights that do not stay is stored as ``NAME_orig`` and ``NAME_mask``, all others
    under their own names. It loads into a plain module on which ``prune.custom_from_mask`` or
    ``prune.identity`` was called for the same tensors.

    Args:
        network: The network.
        w: Its weights; what does not stay is stored as zero.
        kept: True where a weight stays.

    Returns:
        The tensors on the CPU; masks have the type of their tensors.

    Raises:
        OptionError: If ``kept`` is not one bool for each weight, or drops a running statistic.
    """
    if kept.shape != (network.n,) or kept.dtype != torch.bool:
        raise OptionError(
            f"expected a mask of {network.n} bools, got {kept.dtype} of shape "
            f"{tuple(kept.shape)}; make it with the network's own length"
        )
    if not kept[network.n_parameters :].all():
        raise OptionError(
            "expected all running statistics to stay, got a mask without some; only parameters "
            "can be pruned"
        )
    kept = kept.to(w.device)
    masks = {name: mask for name, mask in network.unravel(kept).items() if not mask.all()}
    form: dict[str, Tensor] = {}
    for name, tensor in network.state_dict(torch.where(kept, w, 0.0)).items():
        if name in masks:
            form[f"{name}_orig"] = tensor
            form[f"{name}_mask"] = masks[name].to(tensor)
        else:
            form[name] = tensor
    return form

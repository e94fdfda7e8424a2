from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from geomerge import Network
from geomerge.errors import CheckpointError
from geomerge.networks.outputs import logits_in

LOGITS = torch.ones(4, 3)


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        SimpleNamespace(logits=LOGITS, loss=None),
        {"logits": LOGITS, "hidden": torch.zeros(4, 9)},
        {"scores": LOGITS},
        (LOGITS, torch.zeros(4, 9)),
        [LOGITS],
    ],
)
def test_logits_are_found(output: Any) -> None:
    assert logits_in(output) is LOGITS


@pytest.mark.parametrize("output", [torch.ones(4), {"a": LOGITS, "b": LOGITS}, (), "text", None])
def test_where_there_are_none_the_message_says_what_to_give(output: Any) -> None:
    with pytest.raises(CheckpointError, match=r"logits of shape \(batch, classes\).*`logits`"):
        logits_in(output)


def test_a_function_of_the_users_finds_them() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 3)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"a": self.layer(x).unsqueeze(1), "b": x}

    network = Network(Last(), logits=lambda output: output["a"][:, -1])
    assert network.logits(network.initial, torch.ones(4, 5)).shape == (4, 3)
    assert network.head_view(slice(0, 2)).logits(network.initial, torch.ones(4, 5)).shape == (4, 2)

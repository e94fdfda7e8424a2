"""Metadata, weight names or ``module:factory`` -> ``nn.Module``.

A network is rebuilt from the names and shapes of its weights wherever they say enough, so that a
bare state dict needs no specification and keeps its own names.
"""

from geomerge.networks.architectures.factory import call_factory
from geomerge.networks.architectures.fitting import rename_like
from geomerge.networks.architectures.known import NAMED, create_network
from geomerge.networks.architectures.rebuild import rebuild_network, recognise

__all__ = ["NAMED", "call_factory", "create_network", "rebuild_network", "recognise", "rename_like"]

"""Architectures of networks, by name, by ``module:factory``, or recognised from weights.

A bare state dict needs no specification if the names and shapes of its weights determine the
architecture; it keeps its names.
"""

from geomerge.networks.architectures.factory import call_factory, factory_name
from geomerge.networks.architectures.fitting import rename_like
from geomerge.networks.architectures.identify import identify, same_architecture
from geomerge.networks.architectures.known import NAMED, create_network, plain_name
from geomerge.networks.architectures.rebuild import assumption, rebuild_network, recognise

__all__ = [
    "NAMED",
    "assumption",
    "call_factory",
    "create_network",
    "factory_name",
    "identify",
    "plain_name",
    "rebuild_network",
    "recognise",
    "rename_like",
    "same_architecture",
]

"""Continual learning without Avalanche: what is kept of earlier tasks, and the merge after each.

``remember`` makes what a task leaves behind, ``merge_expert`` walks from the network before
to one that has learned the expert's function and kept those of all remembered tasks.
"""

from geomerge.continual.experience import merge_expert
from geomerge.continual.memory import TaskMemory, fit_memory, remember
from geomerge.continual.moments import InputMoments, measure_moments
from geomerge.continual.report import MergeReport
from geomerge.continual.settings import ContinualOptions
from geomerge.renamed import old_names

__all__ = [
    "ContinualOptions",
    "InputMoments",
    "MergeReport",
    "TaskMemory",
    "fit_memory",
    "measure_moments",
    "merge_expert",
    "remember",
]

__getattr__ = old_names(__name__)

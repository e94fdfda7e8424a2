"""Continual learning without Avalanche: memory of earlier tasks, and the merge after each.

``remember`` measures the memory of a task, and ``merge_expert`` walks from the network before an
experience to one with the function of the expert that keeps those of all remembered tasks.
"""

from geomerge.continual.class_statistics import ClassStatistics, measure_statistics
from geomerge.continual.memory import Experience, TaskMemory, remember
from geomerge.continual.memory_limit import fit_memory
from geomerge.continual.merge import merge_expert
from geomerge.continual.options import ContinualOptions
from geomerge.continual.pseudo_inputs import InputMoments, measure_moments
from geomerge.continual.report import MergeReport
from geomerge.renamed import old_names

__all__ = [
    "ClassStatistics",
    "ContinualOptions",
    "Experience",
    "InputMoments",
    "MergeReport",
    "TaskMemory",
    "fit_memory",
    "measure_moments",
    "measure_statistics",
    "merge_expert",
    "remember",
]

__getattr__ = old_names(__name__)

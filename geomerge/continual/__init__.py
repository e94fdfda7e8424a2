"""Continual learning without Avalanche: what is kept of earlier tasks, and the merge after each.

``remember`` makes what a task leaves behind, ``merge_experience`` walks from the network before
to one that has learned the expert's function and kept those of all remembered tasks.
"""

from geomerge.continual.experience import merge_experience
from geomerge.continual.memory import Remembered, fit_memory, remember
from geomerge.continual.moments import InputMoments, measure_moments
from geomerge.continual.report import MergeReport
from geomerge.continual.settings import MergeSettings

__all__ = [
    "InputMoments",
    "MergeReport",
    "MergeSettings",
    "Remembered",
    "fit_memory",
    "measure_moments",
    "merge_experience",
    "remember",
]

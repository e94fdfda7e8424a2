"""Tasks: inputs with labels in three splits, and the data sets that they come from."""

from geomerge.data.load import load_task
from geomerge.data.normalisation import (
    Normalisation,
    check_normalised,
    normalisation_of,
    parse_normalisation,
    recorded_normalisation,
    split_normalisations,
)
from geomerge.data.task import Inputs, Split, Task, as_they_are, make_task

__all__ = [
    "Inputs",
    "Normalisation",
    "Split",
    "Task",
    "as_they_are",
    "check_normalised",
    "load_task",
    "make_task",
    "normalisation_of",
    "parse_normalisation",
    "recorded_normalisation",
    "split_normalisations",
]

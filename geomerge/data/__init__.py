"""Tasks: inputs with labels in three splits, and the data sets that they come from."""

from geomerge.data.inputs import Inputs, as_they_are, fit_inputs
from geomerge.data.language import load_encoded_task
from geomerge.data.load import load_task, task_of
from geomerge.data.normalisation import (
    Normalisation,
    check_normalised,
    normalisation_of,
    parse_normalisation,
    recorded_normalisation,
    split_normalisations,
)
from geomerge.data.task import Split, Task, make_task
from geomerge.data.text import ExampleOptions, TextEncoder, is_text_file, load_text_task

__all__ = [
    "ExampleOptions",
    "Inputs",
    "Normalisation",
    "Split",
    "Task",
    "TextEncoder",
    "as_they_are",
    "check_normalised",
    "fit_inputs",
    "is_text_file",
    "load_encoded_task",
    "load_task",
    "load_text_task",
    "make_task",
    "normalisation_of",
    "parse_normalisation",
    "recorded_normalisation",
    "split_normalisations",
    "task_of",
]

"""Text classification tasks: tables with a column of texts and one of labels, as tokens."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from geomerge.data.arrays import LABELS
from geomerge.data.collect import Examples
from geomerge.data.task import Task, make_task
from geomerge.errors import OptionError, TaskError, did_you_mean, first_line
from geomerge.networks.batches import Batch
from geomerge.options import at_least, check_options, option

__all__ = [
    "PLAIN_TEXT",
    "TEXT_FILES",
    "ExampleOptions",
    "TextEncoder",
    "file_pair",
    "is_text_file",
    "load_text_task",
    "read_rows",
    "read_table",
    "read_texts",
]

_DELIMITERS = (",", ";", "\t", "|")  # of .csv files; a semicolon where commas are decimal
TEXT_FILES = (".csv", ".tsv", ".jsonl", ".parquet")  # tables
PLAIN_TEXT = ".txt"
_TEXTS = ("text", "sentence", "content", "document", "review", "question", "gloss")
_LONGEST = 512  # tokens, where neither tokenizer nor network limits them
_FIELD = 2**24  # characters of one field of a CSV file
_SHOWN = 5


@dataclass(frozen=True)
class ExampleOptions:
    """Options of reading files of examples."""

    text_column: str | None = option(
        None, "column of the texts of a .csv, .jsonl or .parquet task; default by its name",
        group="data", recorded="given",
    )  # fmt: skip
    label_column: str | None = option(
        None, "column of the labels of such a task; default by its name", group="data",
        recorded="given",
    )  # fmt: skip
    block_size: int | None = option(
        None, "length of the blocks of plain text that a language model reads, in tokens; default "
        "128, or as many as it takes", group="data", check=at_least(8), recorded="given",
    )  # fmt: skip
    image_size: int | None = option(
        None, "side in pixels to which images are resized", group="data", check=at_least(1),
        recorded="given",
    )  # fmt: skip
    channels: int | None = option(
        None, "number of channels to which images are converted: 1 is grey, 3 is colour",
        group="data", check=lambda count: None if count in (1, 3) else "1 or 3", recorded="given",
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Refuse values that cannot be used."""
        check_options(self)


@dataclass(frozen=True)
class TextEncoder:
    """Tokenizer of a network, and the names of its classes.

    Attributes:
        tokenizer: Function of texts and keywords ``max_length``, ``padding`` and ``truncation``
            that returns a mapping of tensors, as tokenizers of transformers do.
        max_length: Number of tokens at which texts are cut.
        classes: Number of each class by its name; empty where the network does not name them.
        predicts: What the network predicts of a text: ``"class"``, or of each of its tokens the
            ``"next"`` one, or tokens that are ``"masked"``.
    """

    tokenizer: Callable[..., Mapping[str, Tensor]]
    max_length: int = _LONGEST
    classes: Mapping[str, int] | None = None
    predicts: str = "class"

    def token(self, *kinds: str) -> int | None:
        """Return the number of a special token, the first kind that the tokenizer has, or None.

        Args:
            kinds: Such as ``"eos"``, ``"sep"``, ``"mask"``.
        """
        found = (getattr(self.tokenizer, f"{kind}_token_id", None) for kind in kinds)
        return next((token for token in found if token is not None), None)

    def encode(self, texts: Sequence[str]) -> Batch:
        """Return texts as tokens, shape (N, T), with their attention mask."""
        encoded = self.tokenizer(
            list(texts), truncation=True, max_length=self.max_length, padding=True,
            return_tensors="pt",
        )  # fmt: skip
        return dict(encoded)


def is_text_file(name: str) -> bool:
    """Return whether the name of a task is that of a table of texts, or of plain text."""
    return Path(name).suffix.lower() in (*TEXT_FILES, PLAIN_TEXT)


def load_text_task(
    file: Path, encoder: TextEncoder, columns: ExampleOptions | None = None, device: str = "cpu"
) -> Task:
    """Load a task from a table of texts.

    Args:
        file: A ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet`` file. Of two files called
            ``NAME-train.csv`` and ``NAME-test.csv``, naming either takes training and selection
            from the first and the test split from the second. A test file alone is the test split
            as a whole, and its examples are the training and selection splits too.
        encoder: Tokenizer and classes of the network.
        columns: Names of the columns; None finds them by their usual names.
        device: Device of the batches.

    Raises:
        TaskError: If the file is missing or damaged, or labels are no classes of the network.
        OptionError: If the columns are not clear.
    """
    columns = columns or ExampleOptions()
    train, test = file_pair(file)
    texts, labels = read_table(train, columns, encoder)
    tables = [(texts, labels)]
    if test is not None and test != train:
        tables.append(read_table(test, columns, encoder))
    numbers = _class_numbers([label for _, found in tables for label in found], encoder, file)
    examples: list[Examples] = []
    for found, own in tables:
        tokens = encoder.encode(found)
        examples.append((tokens, torch.tensor([numbers[label] for label in own])))
    held = examples[-1] if test is not None else None
    return make_task(str(file), examples[0], held, None, device)


def read_table(
    file: Path, columns: ExampleOptions, encoder: TextEncoder
) -> tuple[list[str], list[str]]:
    """Read the texts and the labels of a table.

    Args:
        file: File.
        columns: Names of the columns; those that are None are found by their usual names.
        encoder: Encoder whose classes identify a column of labels.

    Raises:
        TaskError: If the file cannot be read or has no rows.
        OptionError: If the columns are not clear.
    """
    rows = read_rows(file)
    names = list(rows[0])
    text, label = _columns(file, names, columns)
    short = [i for i, row in enumerate(rows) if row.get(text) is None or row.get(label) is None]
    if short:
        raise TaskError(
            f"row {short[0] + 1} of {file} has no {text!r} or no {label!r}; complete or remove it"
        )
    return [str(row[text]) for row in rows], [_as_text(row[label]) for row in rows]


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Return the rows of a table, values by the names of their columns; at least one.

    Args:
        file: A file that ends in one of :data:`TEXT_FILES`.

    Raises:
        TaskError: If the file cannot be read or has no rows.
    """
    try:
        rows = _READERS[file.suffix.lower()](file)
    except FileNotFoundError as error:
        raise TaskError(f"no file {file}; check the name of the task") from error
    except TaskError:  # which says what is wrong
        raise
    except (OSError, ValueError, csv.Error, ArithmeticError) as error:
        raise TaskError(
            f"{file} is no readable table ({first_line(error)}); write it as CSV in UTF-8 "
            "with a line of column names"
        ) from error
    if not rows:
        raise TaskError(f"{file} has no rows, expected examples with labels; check the file")
    return rows


def read_texts(file: Path, columns: ExampleOptions) -> list[str]:
    """Read the texts of a table; other columns are left alone.

    Args:
        file: File.
        columns: Name of the column; None finds it by its usual names, or takes the only one.

    Raises:
        TaskError: If the file cannot be read or has no rows.
        OptionError: If the column is not clear.
    """
    rows = read_rows(file)
    names = list(rows[0])
    text = names[0] if len(names) == 1 else _column(file, names, columns, "text_column", _TEXTS)
    short = [i for i, row in enumerate(rows) if row.get(text) is None]
    if short:
        raise TaskError(f"row {short[0] + 1} of {file} has no {text!r}; complete or remove it")
    return [str(row[text]) for row in rows]


def file_pair(file: Path) -> tuple[Path, Path | None]:
    """Return the files of training and test; no test file where one file holds all.

    Args:
        file: Either of two files ``NAME-train`` and ``NAME-test`` of one ending, or another file.
    """
    for ending, other in (("train", "test"), ("test", "train")):
        if file.stem.lower().endswith(ending):
            beside = file.with_name(f"{file.stem[: -len(ending)]}{other}{file.suffix}")
            if ending == "train":
                return file, beside if beside.is_file() else None
            return beside if beside.is_file() else file, file
    return file, None


def _columns(file: Path, names: list[str], columns: ExampleOptions) -> tuple[str, str]:
    return (
        _column(file, names, columns, "text_column", _TEXTS),
        _column(file, names, columns, "label_column", LABELS),
    )


def _column(
    file: Path, names: list[str], columns: ExampleOptions, argument: str, usual: Sequence[str]
) -> str:
    """Return the name of a column, as an option names it or by its usual names."""
    given: str | None = getattr(columns, argument)
    if given is not None and given not in names:
        raise OptionError(
            f"{file} has no column {given!r}{did_you_mean(given, names)}; name one with "
            f"`{argument}`"
        )
    found = [given] if given is not None else [n for n in names if n.lower() in usual]
    if len(found) != 1:
        raise OptionError(
            f"{file} has the columns {', '.join(map(str, names))[:200]}, and which is meant is "
            f"not clear; name it with `{argument}`"
        )
    return found[0]


def _class_numbers(labels: Sequence[str], encoder: TextEncoder, file: Path) -> dict[str, int]:
    """Return the class number of every label: by the network's names, else as they are numbered."""
    known, found = dict(encoder.classes or {}), sorted(set(labels))
    if all(label in known for label in found):
        return {label: known[label] for label in found}
    if all(label.isdecimal() for label in found):
        most = len(known) or None
        if most is None or all(int(label) < most for label in found):
            return {label: int(label) for label in found}
    unknown = [label for label in found if label not in known]
    if known and not all(name.upper().startswith("LABEL_") for name in known):
        raise TaskError(
            f"{file} has labels that the network does not name: {_listed(unknown)}; its classes "
            f"are {_listed(list(known))}; rename them, or name the column with `label_column`"
        )
    if known and len(found) != len(known):
        raise TaskError(
            f"{file} has labels as text, {_listed(found)}, and the network has {len(known)} "
            "classes without names; number the labels from 0 on, or write id2label into "
            "config.json"
        )
    if known:
        raise TaskError(
            f"{file} has labels as text, {_listed(found)}, and the network's classes have no "
            "names; number the labels from 0 on, or write id2label into config.json"
        )
    return {label: number for number, label in enumerate(found)}


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(repr(name[:40]) for name in names[:_SHOWN]) + more


def _as_text(label: Any) -> str:
    whole = isinstance(label, float) and label.is_integer()
    return str(int(label) if whole or isinstance(label, bool) else label).strip()


def _read_csv(file: Path) -> list[dict[str, Any]]:
    csv.field_size_limit(_FIELD)
    with open(file, encoding="utf-8-sig", newline="") as stream:
        delimiter = "\t" if file.suffix.lower() == ".tsv" else _delimiter(stream.readline(_FIELD))
        stream.seek(0)
        reader = csv.DictReader(stream, delimiter=delimiter, strict=True)
        return [{str(k): v for k, v in row.items()} for row in reader]


def _delimiter(names: str) -> str:
    """Return what separates the names of columns: a comma, if there is one among them."""
    return "," if "," in names else max(_DELIMITERS, key=names.count)


def _read_json_lines(file: Path) -> list[dict[str, Any]]:
    with open(file, encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("a line that is no object")
    return rows


def _read_parquet(file: Path) -> list[dict[str, Any]]:
    try:
        from pyarrow import parquet  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise TaskError(
            f"{file} needs the package pyarrow, which is not installed; install it, or write the "
            "table as CSV"
        ) from error
    rows: list[dict[str, Any]] = parquet.read_table(file).to_pylist()
    return rows


_READERS: Mapping[str, Callable[[Path], list[dict[str, Any]]]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_json_lines,
    ".parquet": _read_parquet,
}

"""Image files of the examples that a merge's report shows."""

from __future__ import annotations

import io
from pathlib import Path

from torch import Tensor

from geomerge.io.files import write_bytes
from geomerge.merging.analysis import Seen
from geomerge.report.content import example_file, surrogate_file

__all__ = ["write_examples"]


def write_examples(folder: Path, seen: Seen) -> None:
    """Write the images of changed answers and of surrogate inputs, as small PNG files.

    Args:
        folder: Folder of the run.
        seen: Analysis of the merge that the report shows.
    """
    for name, changes in seen.answers.items():
        for example in changes.shown:
            if example.image is not None:
                _write(folder / example_file(name, example.index), example.image)
    for name, found in seen.surrogates.items():
        for index, image in enumerate(found.images):
            _write(folder / surrogate_file(name, index), image)


def _write(file: Path, image: Tensor) -> None:
    from PIL import Image

    file.parent.mkdir(exist_ok=True)
    picture = io.BytesIO()
    Image.fromarray(image.numpy()).save(picture, format="PNG")
    write_bytes(file, picture.getvalue())

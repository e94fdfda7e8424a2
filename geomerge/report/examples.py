"""Image files of the examples that a merge's report shows."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

from geomerge.io.files import write_bytes
from geomerge.merging.analysis import Answers
from geomerge.report.content import example_file

__all__ = ["write_examples"]


def write_examples(folder: Path, answers: Mapping[str, Answers]) -> None:
    """Write the images of examples whose answers changed, as small PNG files.

    Args:
        folder: Folder of the run.
        answers: Changed answers, by network.
    """
    from PIL import Image

    for name, changes in answers.items():
        for example in changes.shown:
            if example.image is None:
                continue
            file = folder / example_file(name, example.index)
            file.parent.mkdir(exist_ok=True)
            picture = io.BytesIO()
            Image.fromarray(example.image.numpy()).save(picture, format="PNG")
            write_bytes(file, picture.getvalue())

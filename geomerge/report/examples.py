"""Images of examples that a report shows -> files."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

from geomerge.io.files import write_bytes
from geomerge.merging.answers import Answers
from geomerge.report.content import example_file

__all__ = ["write_examples"]


def write_examples(folder: Path, answers: Mapping[str, Answers]) -> None:
    """Write the images of examples whose answers changed, as small PNG files.

    Args:
        folder: The run's folder.
        answers: By network, as measured.
    """
    from PIL import Image

    for name, found in answers.items():
        for one in found.shown:
            if one.image is None:
                continue
            file = folder / example_file(name, one.index)
            file.parent.mkdir(exist_ok=True)
            picture = io.BytesIO()
            Image.fromarray(one.image.numpy()).save(picture, format="PNG")
            write_bytes(file, picture.getvalue())

"""All that is wrong, collected rather than raised."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from geomerge.errors import GeomergeError

__all__ = ["Problems"]


class Problems(list[str]):
    """Sentences, each with its remedy, none twice."""

    def note(self, sentence: str) -> None:
        """Add a sentence if it is new."""
        if sentence not in self:
            self.append(sentence)

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Add the sentence of an error that the block raises, and go on after the block."""
        try:
            yield
        except GeomergeError as error:
            self.note(str(error))

"""Messages of errors: each has an example that raises it, and says what to do in one sentence."""

from __future__ import annotations

import importlib
import pkgutil
import re

import messages
import pytest
from messages.sites import Raised, example_of, raised_by, sites

from geomerge.errors import GeomergeError

MODULES = sorted(
    m.name for m in pkgutil.iter_modules(messages.__path__) if m.name not in ("sites", "things")
)


@pytest.fixture(scope="module")
def raised() -> list[Raised]:
    """What all examples raise, each run once."""
    return [
        raised_by(f"{name}[{k}]", example)
        for name in MODULES
        for k, example in enumerate(importlib.import_module(f"messages.{name}").EXAMPLES)
    ]


def test_every_example_raises_an_error_of_geomerge(raised: list[Raised]) -> None:
    wrong = [r for r in raised if not isinstance(r.error, GeomergeError | None) or not r.made]
    assert not wrong


def test_every_place_that_makes_an_error_has_an_example(raised: list[Raised]) -> None:
    without = [str(site) for site in sites() if example_of(site, raised) is None]
    assert not without, "\n".join(without)


def form(text: str) -> list[str]:
    """Return what is wrong with the form of a message."""
    return [
        what
        for what, wrong in {
            "is more than one sentence": re.search(r"[.!?]\s+[A-Z]|\n|[.]$", text),
            "is empty or too long": not 10 < len(text) < 700,
            "names a flag": re.search(r"(?<![\w-])--[a-z]", text),
            "shows an object of Python": re.search(
                r"<[\w.]+ (object|function)|\bat 0x|None\b", text
            ),
            "shows a traceback": "Traceback" in text,
            "says nothing to do": not re.search("[;:,]|or ", text),
        }.items()
        if wrong
    ]


def test_every_message_is_one_sentence_with_a_remedy(raised: list[Raised]) -> None:
    texts = {str(made.error): r.example for r in raised for made in r.made}
    wrong = [(example, w, text) for text, example in texts.items() if (w := form(text))]
    assert not wrong

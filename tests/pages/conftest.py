"""One small finished run of each kind, and a browser."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

KINDS = {
    "merge": ("merge", "a.pt", "b.pt", "--manifold", "digits", "--damping", "1e-5",
              "--steps", "30", "--points", "12", "--budget", "b=1e-4"),
    "sparsify": ("sparsify", "a.pt", "--sparsity", "0.8", "--steps", "40", "--stages", "5"),
    "reconfigure": ("reconfigure", "a.pt", "--plan", "plan.yaml", "--steps", "40",
                    "--stages", "4"),
    "compare": ("compare", "a.pt", "b.pt", "--manifold", "digits", "--manifold",
                "digits-permuted", "--budget", "4000", "--steps", "20", "--only",
                "a,b,straight-line,joint-training,joint-walk,sketch-walk"),
    "stream": ("stream", "split-digits", "--experiences", "2", "--epochs", "2", "--only",
               "geodesic,naive,joint"),
}  # fmt: skip
PLAN = "- name: fewer\n  remove: {layers.0: 20}\n- name: others\n  remove: {layers.1: 5}\n"


@pytest.fixture(scope="session")
def runs(
    geomerge: Callable[..., Any], digits: Path, made_once: Callable[..., Path]
) -> dict[str, Path]:
    """The folders of the runs, by what made them."""

    def run_all(folder: Path) -> None:
        for name in ("a.pt", "b.pt"):
            shutil.copy(digits / name, folder / name)
        (folder / "plan.yaml").write_text(PLAN)
        for kind, words in KINDS.items():
            done = geomerge(*words, "--out", kind, cwd=folder)
            assert done.returncode == 0, done.stderr

    place = made_once("pages", run_all)
    return {kind: place / kind for kind in KINDS}


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium without a screen, as Debian packages it."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in programs:
        pytest.skip("needs chromium and chromedriver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=Service(programs[1]))
    yield found
    found.quit()

"""The commands, their help and their options: none is lost."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from geomerge.cli.app import app
from geomerge.cli.commands import COMMANDS, load_command

# Every command's arguments, and the options that are in users' hands.
KNOWN = {
    "merge": ("NETWORKS...", "align arch bn budget damping data-root device download head json "
              "keep-zeros learn learning-rate log-json manifold memory metric normalisation out "
              "output pick points precision preset pt relax seed sketch steps task"),
    "merge-sharded": ("NETWORKS...", "at-once base damping data-root download dtype head inputs "
                      "interval json learning-rate log-json manifold metric-inputs "
                      "normalisation out output seed start-at steps"),
    "check": ("NETWORKS...", "align arch bn budget damping data-root device head json keep-zeros "
              "learn learning-rate manifold memory metric normalisation output pick points "
              "precision preset relax seed sketch steps task"),
    "compare": ("A B", "arch base bn budget data-root device download head json log-json manifold "
                "normalisation only out output pick seed sketch skip steps task"),
    "sketch": ("NETWORK", "arch data-root device download force inputs manifold normalisation out "
               "output seed"),
    "inspect": ("NETWORK", "arch data-root device download force inputs json manifold "
                "normalisation out output seed"),
    "sparsify": ("NETWORK", "arch batch bn budget choose damping data-root device download flops "
                 "inputs json labels learning-rate log-json manifold metric mix nm normalisation "
                 "out output params paths per-layer points precision pt refresh remove saliency "
                 "seed shrink sparsity stages steps torch-prune walk"),
    "reconfigure": ("SOURCE", "arch batch bn choose damping data-root device download inputs json "
                    "learning-rate log-json manifold mix normalisation out output plan points "
                    "precision refresh seed stages steps"),
    "stream": ("STREAM", "arch batch budget damping data-root device download epochs ewc-lambda "
               "examples experiences json labels learning-rate log-json lwf-alpha memory-examples "
               "memory-mb metric only out rate scenario seed si-lambda skip walk-epochs "
               "walk-rate"),
    "train": ("", "arch data-root device download epochs force learning-rate log-json "
              "manifold normalisation out seed sketch"),
    "evaluate": ("NETWORKS...", "arch data-root device download json manifold normalisation split"),
    "path": ("RUN", "arch at force out"),
    "verify": ("RUN", "arch data-root device download json network"),
    "report": ("RUN", "open"),
    "doctor": ("", "data-root json"),
    "demo": ("", "out seed"),
}  # fmt: skip


def shown(*words: str) -> str:
    done = CliRunner().invoke(app, [*words, "--help"], prog_name="geomerge")
    assert done.exit_code == 0, done.output
    return done.output


def test_every_command_is_known() -> None:
    assert list(KNOWN) == list(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_no_option_is_lost(name: str) -> None:
    arguments, options = KNOWN[name]
    text = shown(name)
    assert text.startswith(f"Usage: geomerge {name} [OPTIONS] {arguments}".rstrip() + "\n")
    assert {*options.split(), "help"} - {*re.findall(r"^  --([a-z-]+)", text, re.M)} == set()
    assert "Traceback" not in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("name", COMMANDS)
def test_the_summary_is_the_first_sentence_of_the_help(name: str) -> None:
    assert load_command(name).help.splitlines()[0] == COMMANDS[name].summary


def test_the_help_lists_the_commands_by_group() -> None:
    text = shown()
    assert re.findall(r"^(\S.*):$", text, re.M) == [
        "Merge networks", "Make networks smaller", "Learn one task after another",
        "Networks and runs", "Options",
    ]  # fmt: skip
    assert re.findall(r"^  ([a-z][a-z-]*) ", text, re.M) == list(COMMANDS)
    for option in ("--version", "--install-completion", "--help"):
        assert option in text
    assert max(map(len, text.splitlines())) <= 80
    assert shown() == CliRunner().invoke(app, [], prog_name="geomerge").output


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["mrge"], "no such command 'mrge'; did you mean 'merge'; see geomerge --help"),
        (["--quick"], "no such option: --quick; see geomerge --help"),
        (["merge"], "missing argument 'networks'; see geomerge merge --help"),
        (["merge", "a", "--sed", "1"], "no such option: --sed "),
        (["merge", "a", "--seed"], "option '--seed' requires an argument; see geomerge"),
        (["merge", "a", "--seed", "x"], "expected --seed to be a whole number, got 'x'"),
        (["path", "a", "--at", "0"], "missing option '--out'; see geomerge path --help"),
    ],
)
def test_words_that_are_no_options_end_in_one_sentence(
    geomerge: Callable[..., Any], tmp_path: Path, words: list[str], sentence: str
) -> None:
    done = geomerge(*words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"geomerge: {sentence}")
    assert done.stderr.count("\n") == 1


def test_the_shell_completes_names_of_commands_without_torch() -> None:
    code = (
        "import os, sys\n"
        "os.environ.update(_GEOMERGE_COMPLETE='complete_zsh', _TYPER_COMPLETE_ARGS='geomerge re')\n"
        "from geomerge.cli.app import app\n"
        "try:\n    app(prog_name='geomerge')\n"
        "except SystemExit:\n    print('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert '"reconfigure"' in done.stdout
    assert '"report"' in done.stdout
    assert '"merge"' not in done.stdout
    assert done.stdout.endswith("False\n")


def test_the_package_runs_as_a_module(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "geomerge", "--version"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", done.stdout)


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("merge --manifold dig", ["digits", "digits-permuted"]),
        ("merge --manifold b=fash", ["b=fashion-mnist"]),
        ("merge --task b=cif", ["b=cifar10"]),
        ("merge --pick ba", ["balanced"]),
        ("train --manifold rot", ["rotated-mnist"]),
        ("train --arch lenet", ["lenet-300-100"]),
        ("evaluate --arch resnet18", ["resnet18", "resnet18-cifar"]),
    ],
)
def test_the_shell_completes_names(words: str, names: list[str]) -> None:
    said = completed(f"geomerge {words}")
    for name in names:
        assert f'"{name}"' in said


def completed(words: str) -> str:
    environment = {"_GEOMERGE_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": words}
    return CliRunner().invoke(app, [], env=environment, prog_name="geomerge").output

"""Flags made from options classes, and the sentences that name them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from geomerge.cli.commands import GroupedCommand
from geomerge.cli.console import show_notes
from geomerge.cli.flags import Flags, command
from geomerge.errors import OptionError, warn_assumption
from geomerge.options import check_options, option, piece


def _positive(value: float) -> str | None:
    return None if value > 0 else "a positive number"


@dataclass(frozen=True)
class WalkPart:
    steps: int | None = option(None, "number of steps; by default chosen", group="walk")
    damping: float = option(0.1, "damping of the steps", group="walk", check=_positive)

    def __post_init__(self) -> None:
        check_options(self)


def _tools() -> tuple[str, ...]:
    return ("slerp", "slow", "ties")


@dataclass(frozen=True)
class Options:
    task: tuple[str, ...] = option((), "task of a network", group="data")
    walk: WalkPart = piece(WalkPart)
    head: str = option("shared", "output layer", choices=("shared", "separate"))
    only: tuple[str, ...] = option((), "rows of the table", choices=_tools)
    sizes: tuple[int, ...] = option((200, 500), "numbers of examples")
    choice: str | None = option(None, "order of removal", flag="choose", choices=("a", "b"))
    labels: bool = option(False, "use of labels")
    sketch: bool = option(True, "a sketch in the file")

    def __post_init__(self) -> None:
        if self.labels and self.sketch:
            raise OptionError("`labels` and `sketch` exclude each other, `keep` does not")


def made(function: Callable[..., None]) -> typer.Typer:
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command("tool", cls=GroupedCommand)(command(function))
    return app


def run(*words: str, flags: Flags | None = None) -> tuple[Any, Any]:
    """The options and the file that words stand for, or what was said to them."""
    seen: list[Any] = []
    if flags is None:

        def tool(files: list[Path], options: Options, seed: Annotated[int, typer.Option()] = 0):  # type: ignore[no-untyped-def]
            seen.extend([options, (files, seed)])
    else:

        def tool(files: list[Path], options: Annotated[Options, flags]):  # type: ignore[no-untyped-def,misc]
            seen.extend([options, files])

    tool.__annotations__.update(
        files=Annotated[list[Path], typer.Argument(help="Files.")],
        options=Options if flags is None else Annotated[Options, flags],
        seed=Annotated[int, typer.Option(help="seed of the draws")],
    )
    done = CliRunner().invoke(made(tool), [*words])
    return (seen[0], seen[1]) if seen else (done.exit_code, done.output)


def test_no_words_are_the_defaults() -> None:
    assert run("a.pt") == (Options(), ([Path("a.pt")], 0))


def test_every_kind_of_option_is_read() -> None:
    words = "a.pt b.pt --task a=mnist --task digits --steps 7 --damping 1e-3 --head separate "
    words += "--only ties,slow --only slerp --sizes 3 --choose b --no-sketch --labels --seed 5"
    options, rest = run(*words.split())
    assert options == Options(
        task=("a=mnist", "digits"), walk=WalkPart(7, 1e-3), head="separate",
        only=("ties", "slow", "slerp"), sizes=(3,), choice="b", labels=True, sketch=False,
    )  # fmt: skip
    assert rest == ([Path("a.pt"), Path("b.pt")], 5)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--steps", "few"], "expected --steps to be a whole number, got 'few'; correct it"),
        (["--seed", "1.5"], "expected --seed to be a whole number, got '1.5'; correct it"),
        (["--damping", "0"], "expected --damping to be a positive number, got 0.0; correct it"),
        (["--labels"], "--labels and --sketch exclude each other, `keep` does not"),
    ],
)
def test_sentences_name_flags(words: list[str], sentence: str) -> None:
    assert run("a.pt", *words) == (2, f"geomerge: {sentence}\n")


def test_a_command_has_the_options_that_it_chooses() -> None:
    flags = Flags(only=("walk", "head"), defaults={"head": "separate"})
    assert run("a.pt", flags=flags)[0] == Options(head="separate")
    assert run("a.pt", "--steps", "3", flags=flags)[0].walk.steps == 3
    code, said = run("a.pt", "--task", "x", flags=flags)
    assert (code, "No such option" in said) == (2, True)
    code, said = run("a.pt", "--steps", "3", flags=Flags(without=("walk",)))
    assert code == 2


def test_the_help_has_a_heading_for_every_group() -> None:
    code, text = run("--help")
    assert code == 0
    assert "Usage: tool [OPTIONS] FILES...\n" in text
    for line in (
        "Arguments:\n  FILES...  Files.\n",
        "Data:\n  --task TEXT  Task of a network\n",
        "Walk:\n",
        "--damping NUMBER  Damping of the steps  [default: 0.1]",
        "--head [shared|separate]",
        "--choose [a|b]",
        "--only NAME,...",
        "--sketch / --no-sketch",
    ):
        assert line in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("tool --head s", {"shared", "separate"}),
        ("tool --only ties,sl", {"ties,slerp", "ties,slow"}),
        ("tool --st", {"--steps"}),
    ],
)
def test_the_shell_completes(words: str, expected: set[str]) -> None:
    def tool(options: Options) -> None: ...

    tool.__annotations__["options"] = Options
    environment = {"_TOOL_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": words}
    app = made(tool)
    app._add_completion = True
    said = CliRunner().invoke(app, [], env=environment, prog_name="tool").output
    assert {name for name in expected if f'"{name}"' in said} == expected


def test_an_option_may_be_an_argument() -> None:
    @dataclass(frozen=True)
    class Named:
        name: str = option("digits", "name of the stream", positional=True)
        steps: int = option(3, "number of steps")

    seen: list[Named] = []

    def tool(options: Named) -> None:
        seen.append(options)

    tool.__annotations__["options"] = Named
    assert CliRunner().invoke(made(tool), ["mnist", "--steps", "5"]).exit_code == 0
    assert seen == [Named("mnist", 5)]
    assert CliRunner().invoke(made(tool), ["--steps", "5"]).exit_code == 2


@pytest.mark.parametrize("told", [False, True])
def test_a_warning_of_the_library_is_a_note_once(told: bool) -> None:
    def warn() -> None:
        warn_assumption("ReLU is assumed; give `head`")

    def tool(options: Options) -> None:
        warn()
        warn()
        if told:
            show_notes(["ReLU is assumed; give `head`"])

    tool.__annotations__["options"] = Options
    said = CliRunner().invoke(made(tool), []).output
    mark = "" if told else "geomerge: "
    assert said == f"{mark}note: ReLU is assumed; give --head\n"

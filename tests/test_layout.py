"""The folders, the packages and the direction in which modules may import each other."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FACE = ROOT / "geomerge" / "__init__.py"
FOLDERS = {"geomerge": "geomerge", "cli": "geomerge.cli", "strategies": "geomerge.strategies"}
# From the ground up; a module imports only from its own line or from lines above.
LAYERS = [
    ["errors", "renamed"],
    ["notebook", "options", "processes", "registry", "monitor"],
    ["io"],
    ["networks"],
    ["data"],
    ["metrics"],
    ["evaluation", "expert", "expert_like", "expert_options", "loading", "weight_space"],
    ["steps"],
    ["walks"],
    ["paths"],
    ["training", "pretrained"],
    ["pruning"],
    ["alignment"],
    ["merging", "continual"],
    ["sharded"],
    ["comparison"],
    ["report"],
    ["certificate"],
    ["runs", "testing"],
    ["strategies"],
    ["cli"],
    ["__main__"],
]


@cache
def sources() -> list[tuple[str, Path]]:
    """Every module as (installed dotted name, file), each file once."""
    found = []
    for folder, package in FOLDERS.items():
        for file in sorted((ROOT / folder).rglob("*.py")):
            if any(part.is_symlink() for part in (file, *file.parents)):
                continue
            parts = file.relative_to(ROOT / folder).with_suffix("").parts
            name = ".".join([package, *(p for p in parts if p != "__init__")])
            found.append((name, file))
    return found


@cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


@cache
def imports(file: Path) -> list[str]:
    found = []
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            found.append(node.module or "")
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def test_every_package_on_disk_is_listed_for_installation() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    on_disk = {name for name, file in sources() if file.name == "__init__.py"}
    folders_of_data = {"geomerge.report.pages.assets", "geomerge.report.templates"}
    assert on_disk | folders_of_data == set(config["packages"])
    assert config["package-dir"] == {package: folder for folder, package in FOLDERS.items()}


def test_modules_are_imported_by_their_installed_names() -> None:
    tops = {"strategies", "cli", "tests"}
    for _, file in sources():
        assert not {name.partition(".")[0] for name in imports(file)} & tops, file


@pytest.mark.parametrize("name", ["strategies", "cli"])
def test_links_lead_to_their_folders(name: str) -> None:
    link = ROOT / "geomerge" / name
    if not link.is_symlink():
        pytest.skip("this checkout has no symbolic links; the installation does not need them")
    assert link.resolve() == (ROOT / name).resolve()


def test_modules_import_only_from_layers_above() -> None:
    rank = {name: i for i, line in enumerate(LAYERS) for name in line}
    for name, file in sources():
        parts = name.split(".")
        if len(parts) == 1:
            continue  # the package itself re-exports, lazily
        assert parts[1] in rank, f"{name} is in no layer: add it to LAYERS"
        for other in imports(file):
            target = other.split(".")
            if target[0] == "geomerge" and len(target) > 1 and target[1] in rank:
                assert rank[target[1]] <= rank[parts[1]], f"{name} imports {other}"


@pytest.mark.parametrize(
    ("package", "home"),
    [
        ("qpth", "geomerge.steps"),
        ("torch_pruning", "geomerge.pruning.trace"),
        ("avalanche", "geomerge.strategies.avalanche"),
        ("vl_convert", "geomerge.report.pages.render"),
        ("typer", "geomerge.cli"),
        ("transformers", "geomerge.networks.hugging_face"),
        ("peft", "geomerge.networks.adapters"),
    ],
)
def test_outside_packages_have_one_door(package: str, home: str) -> None:
    for name, file in sources():
        if not name.startswith(home):
            assert package not in {i.partition(".")[0] for i in imports(file)}, name


def library() -> list[tuple[str, ast.Module]]:
    """Every module of the library, without the command line, with its syntax tree."""
    return [
        (name, tree_of(file)) for name, file in sources() if not name.startswith("geomerge.cli")
    ]


def texts(tree: ast.Module) -> list[str]:
    """The string literals of a module that are no docstrings."""
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in docstrings
    ]


def test_the_library_names_no_flag() -> None:
    flag = re.compile(r"(?<![\w(-])--[a-z][a-z-]*(?![\w:-])")  # but not a variable of CSS
    found = [(name, text) for name, tree in library() for text in texts(tree) if flag.search(text)]
    assert found == []


def test_no_function_has_more_than_seven_parameters() -> None:
    found = set()
    for _, tree in library():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                own = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                if len([one for one in own if one.arg not in ("self", "cls")]) > 7:
                    found.add(node.name)
    assert found == set()


def test_no_public_class_name_occurs_twice() -> None:
    seen: dict[str, str] = {}
    for name, tree in library():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                assert seen.setdefault(node.name, name) == name, node.name


def test_headings_of_modules_are_noun_phrases() -> None:
    question = re.compile(r"^(What|How|Which|Why|Where|When|Whether|Who) |->")
    for name, file in sources():
        heading = (ast.get_docstring(tree_of(file)) or "-").splitlines()[0]
        assert not question.search(heading), f"{name}: {heading}"


def test_notebooks_and_readme_import_from_the_public_face() -> None:
    pages = {file.name: file.read_text() for file in (ROOT / "notebooks").glob("*.ipynb")}
    pages["README.md"] = (ROOT / "README.md").read_text()
    for page, text in pages.items():
        found = {*re.findall(r"(?:from|import) (geomerge[\w.]*)", text)}
        assert found <= {"geomerge", "geomerge.strategies"}, page


def loaded_by(code: str) -> set[str]:
    out = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return {name.partition(".")[0] for name in out.stdout.split()}


def test_importing_geomerge_loads_no_slow_stranger() -> None:
    assert not loaded_by("import geomerge") & {"avalanche", "qpth", "torchvision", "matplotlib"}
    everything = loaded_by("import geomerge\nfor n in geomerge.__all__: getattr(geomerge, n)")
    assert "torch" in everything
    assert not everything & {"avalanche", "qpth", "torchvision", "matplotlib"}


def test_the_command_line_shows_its_help_without_torch() -> None:
    loaded = loaded_by(
        "from typer.testing import CliRunner\nfrom geomerge.cli.app import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0"
    )
    assert not loaded & {"torch", "numpy", "avalanche", "qpth"}


def test_public_names_are_these() -> None:
    import geomerge

    assert sorted(geomerge.__all__) == [
        "AssumptionWarning", "Checkpoint", "CompareOptions", "Comparison", "Expert",
        "FunctionWalkOptions",
        "GeomergeError", "KroneckerMetric", "MergeOptions", "MergeResult", "Metric", "Network",
        "PlanStep", "ReconfigureOptions", "Run",
        "Sketch", "SparsifyOptions", "Task", "WeightPath", "WeightWalkOptions", "__version__",
        "align", "check", "compare", "from_pretrained", "inspect", "load_checkpoint", "load_sketch",
        "load_task", "make_sketch", "measure_metric", "merge", "open_run", "progress",
        "reconfigure", "save_checkpoint", "save_sketch", "sparsify", "trust_region_step",
        "walk_toward_function", "walk_toward_weights",
    ]  # fmt: skip
    for_readers = re.findall(r"^    from (\S+) import (\w+) as \2$", FACE.read_text(), re.M)
    assert {name for _, name in for_readers} == {*geomerge.__all__} - {"__version__"}
    for name in geomerge.__all__:
        assert getattr(geomerge, name) is not None

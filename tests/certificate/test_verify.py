from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from merges import run_of

from geomerge import Checkpoint, load_checkpoint, load_task, save_checkpoint
from geomerge.certificate import stored_run
from geomerge.certificate.certificate import report_digest
from geomerge.certificate.verify import Verification, verify_run
from geomerge.errors import OptionError, RunError
from geomerge.io.files import sha256
from geomerge.merging import choice
from geomerge.merging.prepare import PreparedMerge
from geomerge.networks.factor_form import FactorForm
from geomerge.training import train_checkpoint


@pytest.fixture
def run(finished: Path, digits: Path, tmp_path: Path) -> Path:
    """A copy of the run, its input files beside it."""
    for name in ("a.pt", "b.pt"):
        shutil.copy(digits / name, tmp_path)
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def failing(found: Verification) -> dict[str, str]:
    return {claim.name: claim.detail for claim in found.claims if claim.holds is False}


def unchecked(found: Verification) -> set[str]:
    return {claim.name for claim in found.claims if claim.holds is None}


def flip(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


def edit(run: Path, change: Callable[[dict[str, Any]], None], *, forge: bool) -> None:
    """Edit a report; a forger makes the digests right again."""
    report = json.loads((run / "report.json").read_text())
    change(report)
    if forge:
        given = report["certificate"]
        given["files"] = {name: sha256((run / name).read_bytes()) for name in given["files"]}
        given["report_sha256"] = report_digest(report)
    (run / "report.json").write_text(json.dumps(report))


def test_a_run_with_surrogate_inputs_shows_them_and_holds(digits: Path, tmp_path: Path) -> None:
    for name in ("a.pt", "b.pt"):
        shutil.copy(digits / name, tmp_path)
    options = {
        "manifold": ("digits",), "preset": "surrogate", "damping": 1e-4, "steps": 6, "points": 8,
        "budget": ("b=1",),
    }  # fmt: skip
    folder, report, _ = run_of([tmp_path / "a.pt", tmp_path / "b.pt"], options, out=tmp_path / "s")
    shown = report["surrogates"]["b"]
    assert shown["kind"] == "surrogate images"
    assert shown["shown"]
    assert all((folder / file).is_file() for file in shown["shown"])
    assert report["networks"]["b"]["sketch"]["task"] == "surrogate images"
    assert "Surrogate inputs of b" in (folder / "report.html").read_text()
    found = verify_run(folder)
    assert found.holds
    assert all(claim.holds for claim in found.claims), found.claims


def test_predicted_drifts_hold_in_the_form_of_factors_that_memory_left_room_for(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.pt", "b.pt"):
        known = load_checkpoint(digits / name)
        plain = {k: v for k, v in known.meta.items() if k != "sketch"}
        save_checkpoint(tmp_path / name, Checkpoint(known.weights, plain))

    def limited(prepared: PreparedMerge, work: Path | None = None) -> PreparedMerge:
        return replace(prepared, space=prepared.space.limited(64, None, FactorForm.DIAGONAL))

    for module in (choice, stored_run):
        monkeypatch.setattr(module, "fit_memory", limited)
    options = {"manifold": ("digits", "digits-permuted"), "preset": "sketches", "points": 8}
    folder, report, _ = run_of([tmp_path / "a.pt", tmp_path / "b.pt"], options, out=tmp_path / "s")
    assert report["networks"]["b"]["sketch"]
    found = verify_run(folder)
    assert all(claim.holds for claim in found.claims), found.claims


def test_an_untouched_run_holds(run: Path) -> None:
    found = verify_run(run)
    assert found.holds
    assert found.notes == []
    assert all(claim.holds for claim in found.claims), found.claims


def test_input_files_that_are_gone_are_not_checked(run: Path, digits: Path) -> None:
    (run.parent / "a.pt").unlink()
    (run.parent / "b.pt").rename(run.parent / "c.pt")
    found = verify_run(run, networks={"b": run.parent / "c.pt"})
    assert found.holds
    by_sketches = {f"drift from {name} by its sketch" for name in "ab"}
    assert unchecked(found) == {"input a", "identity: the path starts at a", *by_sketches}
    flip(run.parent / "c.pt", -2000)
    assert set(failing(verify_run(run, networks={"b": run.parent / "c.pt"}))) >= {"input b"}


@pytest.mark.parametrize("at", [9, -1])
@pytest.mark.parametrize(
    "pattern",
    ["merged.safetensors", "curves.png", "recipe.json", "path/a.safetensors", "path/b-*",
     "path/index.json", "path/steps.jsonl"],
)  # fmt: skip
def test_a_changed_byte_is_found_and_its_file_named(run: Path, pattern: str, at: int) -> None:
    file = sorted(run.glob(pattern))[-1]
    flip(file, at)
    name = file.relative_to(run).as_posix()
    assert failing(verify_run(run))["stored files"] == f"{name} has changed"


def test_a_file_that_is_gone_is_named(run: Path) -> None:
    file = sorted(run.glob("path/a-*"))[0]
    file.unlink()
    assert failing(verify_run(run))["stored files"] == f"path/{file.name} is not there"


def test_a_changed_byte_of_the_report_is_found(run: Path) -> None:
    whole = (run / "report.json").read_bytes()
    for at in np.random.default_rng(0).integers(len(whole), size=12):
        flip(run / "report.json", int(at))
        try:  # a digit beyond the precision of a number says the same
            if json.loads((run / "report.json").read_bytes()) == json.loads(whole):
                continue
        except ValueError:
            pass
        assert "report.json" in failing(verify_run(run)), at
        (run / "report.json").write_bytes(whole)


def test_edited_numbers_are_found(run: Path) -> None:
    def better(report: dict[str, Any]) -> None:
        report["results"][-1]["test"]["b"] = 0.99

    edit(run, better, forge=False)
    found = failing(verify_run(run))
    assert set(found) == {"report.json", "accuracy of crossover"}
    assert "table has 0.99 for test/b" in found["accuracy of crossover"]


@pytest.mark.parametrize(
    ("place", "claim"),
    [
        (("accuracies", "crossover", "test", "a", "correct"), "accuracy of crossover"),
        (("accuracies", "b", "select", "b", "correct"), "accuracy of b"),
        (("bracket", 0, "select", "a", "correct"), "bracket"),
        (("bracket", 1, "t"), "bracket"),
        (("drift", "networks", "a", "kl"), "drift from a"),
        (("drift", "networks", "b", "predicted"), "drift from b by its sketch"),
        (("drift", "legs", "b", "predicted"), "path"),
        (("crossover",), "path"),
        (("data", "a", "manifold", "examples"), "data of a"),
        (("recipe", "merge", "points"), "recipe"),
    ],
)
def test_numbers_are_made_again_even_where_digests_were_forged(
    run: Path, place: tuple[Any, ...], claim: str
) -> None:
    def change(report: dict[str, Any]) -> None:
        part = report["certificate"]
        for key in place[:-1]:
            part = part[key]
        part[place[-1]] *= 1.01
        part[place[-1]] += claim == "recipe"

    edit(run, change, forge=True)
    assert set(failing(verify_run(run))) == {claim}


@pytest.mark.parametrize(
    ("place", "claim"),
    [
        (("accuracy", "a"), "curve"),
        (("classes", "b", "3"), "curve"),
        (("distance", "b"), "curve"),
        (("measured", "b"), "curve"),
        (("predicted", "b"), "drift from b by its sketch"),
    ],
)
def test_the_curve_is_measured_again(run: Path, place: tuple[str, ...], claim: str) -> None:
    def change(report: dict[str, Any]) -> None:
        part = report["curve"][2]
        for key in place[:-1]:
            part = part[key]
        part[place[-1]] = 1.01 * part[place[-1]] + 0.01

    edit(run, change, forge=True)
    assert set(failing(verify_run(run))) == {claim}


@pytest.mark.parametrize("kept", [slice(0, 0), slice(0, None, 2)], ids=["none", "half"])
def test_a_curve_without_some_of_its_points_is_found(run: Path, kept: slice) -> None:
    def change(report: dict[str, Any]) -> None:
        report["curve"] = report["curve"][kept]

    edit(run, change, forge=True)
    assert set(failing(verify_run(run))) == {"curve"}


def test_a_step_that_does_not_add_up_is_found(run: Path) -> None:
    steps = (run / "path" / "steps.jsonl").read_text().splitlines()
    record = json.loads(steps[3])
    steps[3] = json.dumps({**record, "length": record["length"] * 2})
    (run / "path" / "steps.jsonl").write_text("\n".join(steps) + "\n")
    edit(run, lambda report: None, forge=True)
    assert failing(verify_run(run)) == {
        "path": f"step {record['step']} of the leg from {record['leg']} does not add up"
    }


def test_a_swapped_network_is_found_even_where_digests_were_forged(run: Path) -> None:
    shutil.copy(sorted(run.glob("path/b-*"))[0], sorted(run.glob("path/b-*"))[-1])
    edit(run, lambda report: None, forge=True)
    found = failing(verify_run(run))
    assert found["identity: merged.safetensors is the path at the crossover"]


def test_a_section_that_is_gone_does_not_hold(run: Path) -> None:
    edit(run, lambda report: report["certificate"].pop("drift"), forge=False)
    found = failing(verify_run(run))
    assert {"report.json", "path", "drift from a", "drift from b"} <= set(found)
    (run / "report.json").write_text("{")
    assert set(failing(verify_run(run))) == {"report.json"}


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder with two tasks, a.npz and b.npz, and networks for them."""
    rng = np.random.default_rng(0)
    for k, name in enumerate("ab"):
        x = rng.normal(size=(200, 6)).astype(np.float32)
        np.savez(tmp_path / f"{name}.npz", x=x, y=(x[:, k] > 0).astype(np.int64))
        task = load_task(str(tmp_path / f"{name}.npz"))
        train_checkpoint(
            tmp_path / f"{name}.safetensors", "lenet-300-100", task, epochs=2, seed=k
        )  # fmt: skip
    return tmp_path


def merged(own: Path, names: str, **options: Any) -> Path:
    tasks = tuple(f"{letter}={own / name}.npz" for letter, name in zip("abc", names, strict=False))
    files = [own / f"{name}.safetensors" for name in names]
    settings = {"manifold": tasks, "steps": 3, "points": 8, "damping": 1e-3, **options}
    folder, _, _ = run_of(files, settings, out=own / "run")
    return folder


def test_changed_data_is_found_and_missing_data_is_not_checked(own: Path) -> None:
    run = merged(own, "ab")
    assert all(claim.holds for claim in verify_run(run).claims)

    whole = (own / "b.npz").read_bytes()
    flip(own / "b.npz", 400)  # within the inputs: the archive's own check sum fails
    found = verify_run(run)
    assert set(failing(found)) == {"data of b"}
    assert "b.npz is not a readable .npz" in failing(found)["data of b"]
    assert "accuracy of crossover" in unchecked(found)

    (own / "b.npz").write_bytes(whole)
    with np.load(own / "a.npz") as arrays:
        x, y = arrays["x"], arrays["y"]
    x[17, 3] += 1e-3
    np.savez(own / "a.npz", x=x, y=y)
    assert "inputs is stated as" in failing(verify_run(run))["data of a"]

    (own / "a.npz").unlink()
    gone = verify_run(run)
    assert gone.holds
    assert "data of a" in unchecked(gone)
    assert "data of b" not in unchecked(gone)


@pytest.mark.parametrize("head", ["offset", "separate"])
def test_networks_with_widened_heads_are_verified(own: Path, head: str) -> None:
    run = merged(own, "ab", head=head)
    assert all(claim.holds for claim in verify_run(run).claims)


def test_a_network_between_the_ends_is_verified_from_its_file(own: Path) -> None:
    run = merged(own, "aba")
    (own / "b.safetensors").rename(own / "middle.safetensors")
    found = verify_run(run)
    assert found.holds
    by_sketches = {f"drift from {name} by its sketch" for name in "abc"}
    assert unchecked(found) == {"input b", "accuracy of b", "drift from b", "curve", *by_sketches}
    found = verify_run(run, networks={"b": own / "middle.safetensors"})
    assert all(claim.holds for claim in found.claims)


def test_a_sketch_in_a_file_of_its_own_is_an_input(
    geomerge: Callable[..., Any], own: Path, tmp_path: Path
) -> None:
    b = load_checkpoint(own / "b.safetensors")
    save_checkpoint(own / "b.safetensors", Checkpoint(b.weights, {**b.meta, "sketch": {}}))
    words = ["sketch", "b.safetensors", "--manifold", "b.npz", "--out", "kept.safetensors"]
    assert geomerge(*words, cwd=own).returncode == 0
    run = merged(own, "ab", sketch=(f"b={own / 'kept.safetensors'}",))
    report = json.loads((run / "report.json").read_text())
    assert report["certificate"]["sketches"] == {"b": "kept.safetensors"}
    found = {claim.name: claim.holds for claim in verify_run(run).claims}
    assert found["input sketch of b"]
    assert found["drift from b by its sketch"]
    assert all(found.values())
    (own / "moved").mkdir()
    (own / "kept.safetensors").rename(own / "moved" / "kept.safetensors")
    assert "input sketch of b" in unchecked(verify_run(run))
    moved = own / "moved" / "kept.safetensors"
    assert unchecked(verify_run(run, networks={"sketch of b": moved})) == set()


def test_mistakes_are_said(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no finished run"):
        verify_run(tmp_path / "none")
    with pytest.raises(OptionError, match="network 'z'"):
        verify_run(run, networks={"z": run / "merged.safetensors"})
    with pytest.raises(OptionError, match="no file"):
        verify_run(run, networks={"a": run / "none.pt"})
    edit(run, lambda report: report.pop("certificate"), forge=False)
    with pytest.raises(RunError, match="without a certificate"):
        verify_run(run)


def test_the_command_says_it_claim_by_claim(geomerge: Callable[..., Any], run: Path) -> None:
    def verify(*args: str | Path) -> Any:
        return geomerge("verify", *args, cwd=run.parent)

    done = verify("run")
    assert done.returncode == 0, done.stderr
    wrong = verify("run", "--network", "a.pt")
    assert wrong.returncode == 2
    assert "expected --network to be NAME=FILE such as a=a.pt" in wrong.stderr
    assert "holds       accuracy of crossover" in done.stdout
    flip(run / "merged.safetensors", -1)
    done = verify("run", "--json")
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert not found["holds"]
    wrong = [claim["name"] for claim in found["claims"] if claim["holds"] is False]
    assert wrong[0] == "stored files"
    done = verify("nothing")
    assert done.returncode == 2
    assert "holds no finished run" in done.stderr
    assert "Traceback" not in done.stderr

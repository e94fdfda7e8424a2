"""Half precision of stored weights: kept from file to file, computed in float32."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from merges import run_of
from torch import nn

import geomerge as gm
from geomerge.certificate.verify import verify_run
from geomerge.errors import OptionError

RUNS = Path(__file__).parent.parent / "fixtures" / "runs-0.1"


def half_copy(file: Path, dtype: str, out: Path) -> Path:
    """Write a file of the same network with its tensors in another type, nothing else changed."""
    found = gm.load_checkpoint(file)
    kind = getattr(torch, dtype)
    tensors = {k: v.to(kind) for k, v in found.weights.items()}
    meta = json.dumps({k: found.meta[k] for k in ("task", "architecture")})
    safetensors.torch.save_file(tensors, out, {"geomerge": meta})
    return out


def types_of(file: Path) -> set[str]:
    tensors = safetensors.torch.load_file(file)
    return {str(v.dtype).removeprefix("torch.") for v in tensors.values() if v.is_floating_point()}


QUICK: dict[str, Any] = {"damping": 1e-4, "steps": 4, "points": 8}


@pytest.mark.slow
def test_a_run_of_half_precision_is_one(tiny: Path, tmp_path: Path) -> None:
    files = [half_copy(tiny / f"{n}.pt", "float16", tmp_path / f"{n}.pt") for n in ("a", "b")]
    folder, report, _ = run_of(files, {**QUICK, "manifold": ("digits",)}, out=tmp_path / "run")
    assert types_of(folder / "merged.safetensors") == {"float16"}
    found = verify_run(folder)
    assert all(claim.holds for claim in found.claims), found.claims
    merged = gm.open_run(folder).expert()
    assert merged.weights.dtype == torch.float32
    measured = merged.accuracy("select", gm.load_task("digits"))
    assert report["crossover"]["select"]["a"] == pytest.approx(measured)
    assert torch.equal(gm.open_run(folder).path.at(0), gm.Expert.load(files[0]).weights)


@pytest.mark.parametrize(
    ("given", "told", "written"),
    [
        (("bfloat16", "bfloat16"), None, "bfloat16"),
        (("bfloat16", "bfloat16"), "float32", "float32"),
        (("float32", "float32"), "bfloat16", "bfloat16"),
        (("float16", "float32"), None, "float32"),
    ],
)
def test_the_type_of_a_merge(
    tiny: Path, tmp_path: Path, given: tuple[str, str], told: str | None, written: str
) -> None:
    pairs = zip(("a", "b"), given, strict=True)
    files = [half_copy(tiny / f"{n}.pt", kind, tmp_path / f"{n}.pt") for n, kind in pairs]
    merged = gm.merge(files, inputs="digits", dtype=told, **QUICK)
    merged.save(tmp_path / "run")
    assert types_of(tmp_path / "run" / "merged.safetensors") == {written}
    again = gm.load_checkpoint(tmp_path / "run" / "merged.safetensors")
    assert torch.equal(merged.expert.network.ravel(again.weights), merged.w)


def test_sparse_networks_keep_their_type(tiny: Path, tmp_path: Path) -> None:
    file = half_copy(tiny / "a.pt", "float16", tmp_path / "a.pt")
    options = {"sparsity": 0.5, "steps": 4, "stages": 2, "points": 8}
    found = gm.sparsify(file, **options)
    found.save(tmp_path / "sparse")
    assert types_of(tmp_path / "sparse" / "sparse.safetensors") == {"float16"}
    again = gm.load_checkpoint(tmp_path / "sparse" / "sparse.safetensors")
    assert torch.equal(found.expert.network.ravel(again.weights), found.expert.weights)
    assert found.rows[-1].zeros == pytest.approx(0.5, abs=0.01)
    assert "dtype" not in gm.sparsify(file, **options, dtype="float32").expert.meta


def test_a_module_in_half_precision_is_written_as_one(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).half()
    expert = gm.Expert.from_module(module)
    assert expert.weights.dtype == torch.float32
    expert.save(tmp_path / "a.safetensors")
    assert types_of(tmp_path / "a.safetensors") == {"float16"}


def test_numbers_that_are_too_large_are_named(tmp_path: Path) -> None:
    checkpoint = gm.Checkpoint({"w": torch.tensor([1e6])}, {"dtype": "float16"})
    with pytest.raises(OptionError, match="'w' has numbers up to 1e\\+06, and float16 ends at"):
        gm.save_checkpoint(tmp_path / "a.pt", checkpoint)
    gm.save_checkpoint(tmp_path / "a.pt", replace(checkpoint, meta={"dtype": "bfloat16"}))


def test_a_network_of_the_path_in_a_type(tmp_path: Path, geomerge: Any) -> None:
    run = RUNS / "merge"
    done = geomerge("path", run, "--out", "m.safetensors", "--dtype", "float16", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert types_of(tmp_path / "m.safetensors") == {"float16"}
    wrong = geomerge("path", run, "--out", "n.safetensors", "--dtype", "half", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "unknown dtype 'half'" in wrong.stderr

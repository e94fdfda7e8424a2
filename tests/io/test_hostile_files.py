"""Files made to do harm end in one sentence, and nothing of what they hold is run or built."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile_data import (
    HOSTILE_IMAGES,
    HOSTILE_NPZ,
    HOSTILE_PATHS,
    make_path,
    npz_bytes,
)
from hostile_networks import HOSTILE_SAFETENSORS, HOSTILE_TORCH
from PIL import Image

from geomerge import Checkpoint, WeightPath, load_checkpoint, load_task, save_checkpoint
from geomerge.errors import GeomergeError, TaskError


def one_sentence(error: pytest.ExceptionInfo[GeomergeError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 600
    return text


@pytest.mark.parametrize("case", HOSTILE_TORCH)
def test_hostile_torch_files(tmp_path: Path, case: str) -> None:
    (tmp_path / "a.pt").write_bytes(HOSTILE_TORCH[case]())
    with pytest.raises(GeomergeError) as error:
        load_checkpoint(tmp_path / "a.pt")
    one_sentence(error)


@pytest.mark.parametrize("case", HOSTILE_SAFETENSORS)
def test_hostile_safetensors_files(tmp_path: Path, case: str) -> None:
    (tmp_path / "a.safetensors").write_bytes(HOSTILE_SAFETENSORS[case]())
    with pytest.raises(GeomergeError) as error:
        load_checkpoint(tmp_path / "a.safetensors")
    one_sentence(error)


@pytest.mark.parametrize("case", HOSTILE_NPZ)
def test_hostile_arrays(tmp_path: Path, case: str) -> None:
    (tmp_path / "a.npz").write_bytes(HOSTILE_NPZ[case]())
    with pytest.raises(TaskError) as error:
        load_task(str(tmp_path / "a.npz"))
    one_sentence(error)


@pytest.mark.parametrize("case", HOSTILE_IMAGES)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_hostile_images(tmp_path: Path, case: str) -> None:
    (tmp_path / "d" / "cat").mkdir(parents=True)
    (tmp_path / "d" / "cat" / "0.png").write_bytes(HOSTILE_IMAGES[case]())
    with pytest.raises(TaskError, match="not a readable image") as error:
        load_task(str(tmp_path / "d"))
    one_sentence(error)


@pytest.mark.parametrize("case", HOSTILE_PATHS)
def test_hostile_paths(tmp_path: Path, case: str) -> None:
    HOSTILE_PATHS[case](tmp_path / "path")
    with pytest.raises(GeomergeError) as error:
        WeightPath(tmp_path / "path").at(0.5)
    one_sentence(error)


def test_the_same_files_without_the_harm_are_read(tmp_path: Path) -> None:
    make_path(tmp_path / "path")
    assert torch.equal(WeightPath(tmp_path / "path").at(0.5), torch.full((17,), 0.5))
    (tmp_path / "a.npz").write_bytes(npz_bytes(x=np.ones((30, 2)), y=np.arange(30) % 3))
    assert load_task(str(tmp_path / "a.npz")).classes == 3
    linked = tmp_path / "linked"  # the folder itself may be anywhere
    linked.symlink_to(tmp_path / "path")
    assert torch.equal(WeightPath(linked).at(1), torch.ones(17))


@pytest.mark.parametrize("old", [False, True])
def test_what_a_training_script_saves_is_read(tmp_path: Path, old: bool) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    state = {"state_dict": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
    for content in (state, dict(net.named_parameters())):
        torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=not old)
        read = load_checkpoint(tmp_path / "a.pt")
        assert torch.equal(read.weights["0.weight"], net[0].weight)


def test_tied_weights_stay_readable(tmp_path: Path) -> None:
    one = torch.randn(4, 4)
    for suffix in (".pt", ".safetensors"):
        file = tmp_path / f"tied{suffix}"
        save_checkpoint(file, Checkpoint({f"layer{k}": one for k in range(12)}))
        assert torch.equal(load_checkpoint(file).weights["layer11"], one)


def test_pipes_and_devices_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.pt")
    (tmp_path / "b.pt").symlink_to("/dev/zero")
    for name in ("a.pt", "b.pt"):
        with pytest.raises(GeomergeError, match="not a regular file"):
            load_checkpoint(tmp_path / name)
    (tmp_path / "d" / "cat").mkdir(parents=True)
    os.mkfifo(tmp_path / "d" / "cat" / "pipe.png")
    Image.new("L", (8, 8)).save(tmp_path / "d" / "cat" / "0.png")
    with pytest.raises(TaskError, match="has 1 training"):
        load_task(str(tmp_path / "d"))


def test_factories_of_python_itself_are_not_called(tmp_path: Path) -> None:
    make_path(tmp_path / "path")
    a = load_checkpoint(tmp_path / "path" / "a.safetensors")
    for name in ("os:abort", "sys:exit", "multiprocessing.pool:ThreadPool"):
        save_checkpoint(
            tmp_path / "path" / "a.safetensors", Checkpoint(a.weights, {"architecture": name})
        )
        with pytest.raises(GeomergeError, match="of Python itself"):
            WeightPath(tmp_path / "path")


def test_ranges_of_classes_without_end_are_refused() -> None:
    with pytest.raises(TaskError, match="expected classes such as"):
        load_task("digits@0-99999999999999")

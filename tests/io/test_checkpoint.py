from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from geomerge import Checkpoint, load_checkpoint, save_checkpoint
from geomerge.errors import CheckpointError, GeomergeError
from geomerge.io.checkpoint import load_header

WEIGHTS = {"fc.weight": torch.arange(6.0).view(2, 3), "fc.bias": torch.zeros(2)}


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_a_checkpoint_survives_the_disk_bit_for_bit(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"a{suffix}"
    sketch = {"fc/inputs.values": torch.ones(3)}
    save_checkpoint(file, Checkpoint(WEIGHTS, {"task": "mnist"}, sketch))
    read = load_checkpoint(file)
    assert read.meta == {"task": "mnist"}
    for name, value in WEIGHTS.items():
        assert torch.equal(read.weights[name], value)
    assert torch.equal(read.sketch["fc/inputs.values"], torch.ones(3))
    other = tmp_path / f"other{suffix}"
    save_checkpoint(other, Checkpoint(WEIGHTS, {"task": "mnist"}, sketch))
    assert other.read_bytes() == file.read_bytes()


def test_a_saved_checkpoint_opens_in_plain_pytorch(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.pt", Checkpoint(WEIGHTS, {}))
    state = torch.load(tmp_path / "a.pt", weights_only=True)["state_dict"]
    net = nn.ModuleDict({"fc": nn.Linear(3, 2)})
    net.load_state_dict(state)


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}])
def test_bare_and_wrapped_state_dicts_are_read(tmp_path: Path, wrap: object) -> None:
    file = tmp_path / "bare.pth"
    torch.save(wrap({f"module.{k}": v.half() for k, v in WEIGHTS.items()}), file)  # type: ignore[operator]
    read = load_checkpoint(file)
    assert set(read.weights) == set(WEIGHTS)
    assert read.weights["fc.weight"].dtype == torch.float32


def test_a_pickled_module_is_refused_with_the_remedy(tmp_path: Path) -> None:
    torch.save(nn.Linear(3, 2), tmp_path / "module.pt")
    with pytest.raises(CheckpointError, match=r"never unpickles; save it again with torch\.save"):
        load_checkpoint(tmp_path / "module.pt")


def test_code_in_a_pickle_is_never_run(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "hit",)  # type: ignore[return-value]

    (tmp_path / "attack.pt").write_bytes(pickle.dumps({"fc.weight": Attack()}))
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "attack.pt")
    assert not (tmp_path / "hit").exists()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_damaged_file_ends_in_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, data: st.DataObject
) -> None:
    file = tmp_path_factory.mktemp("damaged") / f"a{suffix}"
    save_checkpoint(file, Checkpoint(WEIGHTS, {"task": "mnist"}))
    content = bytearray(file.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(bytes(content))
    message = ""
    try:
        load_checkpoint(file)
    except GeomergeError as error:
        message = str(error)
    assert "\n" not in message


def test_missing_strange_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no file"):
        load_checkpoint(tmp_path / "none.pt")
    with pytest.raises(GeomergeError, match="holds no network of a finished"):
        load_checkpoint(tmp_path)
    torch.save({}, tmp_path / "empty.pt")
    with pytest.raises(CheckpointError, match="holds no weights"):
        load_checkpoint(tmp_path / "empty.pt")
    torch.save({"fc.weight": torch.zeros(2, 2), "epoch": 3}, tmp_path / "mixed.pt")
    assert [*load_checkpoint(tmp_path / "mixed.pt").weights] == ["fc.weight"]


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.tensor([[float("nan")]])}, tmp_path / "nan.pt")
    with pytest.raises(CheckpointError, match=r"'fc\.weight'.*not all finite"):
        load_checkpoint(tmp_path / "nan.pt")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "a.pt"
    save_checkpoint(file, Checkpoint(WEIGHTS, {}))
    before = file.read_bytes()
    with pytest.raises(ValueError):
        save_checkpoint(file, Checkpoint(WEIGHTS, {"bad": float("nan")}))
    assert file.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_training_states_beside_the_weights_do_not_matter(tmp_path: Path) -> None:
    module = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [10, 10, 20])
    file = tmp_path / "training.pt"
    torch.save(
        {
            "state_dict": module.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "shape": torch.Size([3, 2]),
            "device": torch.device("cpu"),
            "seen": {1, 2},
        },
        file,
    )
    assert load_checkpoint(file).weights.keys() == {"weight", "bias"}


def test_an_expanded_buffer_is_read(tmp_path: Path) -> None:
    file = tmp_path / "expanded.pt"
    torch.save({"weight": torch.randn(5, 3).T, "buffer": torch.ones(1, 3).expand(5, 3)}, file)
    found = load_checkpoint(file).weights
    assert found["buffer"].shape == (5, 3)
    assert found["weight"].shape == (3, 5)


@pytest.mark.parametrize("shape", [[0, 2**40, 2**40], [2**32, 2**32, 0]])
def test_headers_of_impossible_shapes_are_refused(tmp_path: Path, shape: list[int]) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}).encode()
    file = tmp_path / "x.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    for read in (load_header, load_checkpoint):
        with pytest.raises(CheckpointError):
            read(file)


def test_a_pipe_has_no_header(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.safetensors")
    with pytest.raises(GeomergeError, match="not a regular file"):
        load_header(tmp_path / "x.safetensors")

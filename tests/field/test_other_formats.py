"""Files that cannot be read are named for what they are, with advice that fits."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import geomerge as gm
from geomerge.errors import GeomergeError


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return buffer.getvalue()


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def safetensors_of(**tensors: torch.Tensor) -> Callable[[Path], None]:
    return lambda file: save_file(tensors, file)


def one_of_type(kind: str, size: int) -> bytes:
    header = {"w": {"dtype": kind, "shape": [2], "data_offsets": [0, size]}}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(size)


LORA = {"base_model.model.q.lora_A.weight": torch.ones(2, 4)}
BYTES: dict[str, tuple[bytes, str]] = {
    "a git-lfs pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        r"git-lfs pointer.*git lfs pull",
    ),
    "a web page": (b"\n<!DOCTYPE html><html><head>", r"web page.*download the file itself"),
    "ONNX": (b"\x08\x08\x12\x07pytorch\x1a\x032.1", r"ONNX model.*PyTorch weights"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(90), r"HDF5 file, as Keras.*PyTorch weights"),
    "Keras": (zipped("metadata.json", "config.json", "model.weights.h5"), "a Keras model"),
    "GGUF": (b"GGUF\x03\x00\x00\x00" + bytes(90), "GGUF file, whose weights are quantised"),
    "TorchScript": (
        zipped("n/data.pkl", "n/constants.pkl", "n/code/__torch__.py"),
        r"TorchScript archive.*state_dict\(\) of the module",
    ),
    "torch.export": (zipped("archive/archive_format", "archive/models/model.json"), "torch.export"),
    "gzip": (b"\x1f\x8b\x08" + bytes(90), "a packed file.*unpack it"),
    "a zip of files": (zipped("run/model.pt", "run/log.txt"), "a zip of other files.*unpack it"),
    "an index of shards": (b'{"weight_map": {}}', "a JSON text.*file of the weights"),
    "a text": (b"epoch: 3\nlr: 0.1\n", "is a text"),
    "nothing": (b"", "is empty.*copy it again"),
    "noise": (b"\xf3\x01\x02\x03" * 30, "no file of weights.*begins with f3"),
    "half a file": (saved({"a": torch.ones(500)})[:900], "not a whole PyTorch file.*copy it again"),
    "8-bit floats": (one_of_type("F8_E4M3", 2), "holds 8-bit floats"),
    "complex in safetensors": (one_of_type("C64", 16), "holds complex numbers"),
    "8-bit floats of torch": (
        saved({"w": torch.ones(2, 2).to(torch.float8_e4m3fn)}), "'w'.*of type float8_e4m3fn",
    ),
    "complex": (saved({"w": torch.ones(2, dtype=torch.complex64)}), "'w'.*of type complex64"),
    "sparse": (saved({"w": torch.eye(3).to_sparse(), "b": torch.ones(3)}), "holds sparse tensors"),
    "without data": (saved({"w": torch.ones(3, device="meta")}), "holds tensors without data"),
    "a module": (saved(nn.Linear(2, 2)), r"a pickled module \(torch\.nn.*never unpickles"),
    "a module under a key": (saved({"model": nn.Linear(2, 2), "epoch": 1}), "a pickled module"),
    "an optimizer": (
        saved({"optimizer": torch.optim.Adam(nn.Linear(2, 2).parameters()).state_dict()}),
        r"holds no weights \(only optimizer\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BYTES)
@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_a_file_is_named_for_what_it_is(tmp_path: Path, case: str, name: str) -> None:
    content, message = BYTES[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(GeomergeError, match=message) as error:
        gm.load_checkpoint(tmp_path / name)
    said = str(error.value)
    assert "rename" not in said
    assert ("copy it again" in said) == (case in ("half a file", "nothing"))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_quantised_networks_are_named(tmp_path: Path) -> None:
    torch.save(
        {"w": torch.quantize_per_tensor(torch.ones(2, 2), 1.0, 0, torch.qint8)}, tmp_path / "q"
    )
    with pytest.raises(GeomergeError, match="holds quantised tensors"):
        gm.load_checkpoint(tmp_path / "q")


WEIGHTS: dict[str, tuple[str, dict[str, torch.Tensor], str]] = {
    "an adapter": ("adapter_model.safetensors", LORA, "adapter without its base network.*merge it"),
    "an adapter beside its base": (
        "a.safetensors", {**LORA, "base_model.model.q.base_layer.weight": torch.ones(4, 4)},
        "adapter beside its base network",
    ),
    "4-bit weights": (
        "a.safetensors", {"q.qweight": torch.ones(2, 2), "q.qzeros": torch.ones(2)}, "quantised",
    ),
    "a shard": (
        "model-00001-of-00003.safetensors", {"q.weight": torch.ones(2, 2, 2)}, "one shard of 3",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WEIGHTS)
@pytest.mark.parametrize("arch", [None, lambda: nn.Sequential(nn.Linear(4, 4))])
def test_a_part_of_a_network_is_named_for_what_it_is(
    tmp_path: Path, case: str, arch: Callable[[], nn.Module] | None
) -> None:
    name, tensors, message = WEIGHTS[case]
    save_file(tensors, tmp_path / name)
    with pytest.raises(GeomergeError, match=message):
        gm.from_pretrained(tmp_path / name, arch=arch)

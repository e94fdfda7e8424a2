"""Data as people have it: labels, types, images and files of all usual forms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import geomerge as gm
from geomerge.data import ExampleOptions
from geomerge.errors import NoLabelsError, TaskError, TaskWarning
from geomerge.merging.check import check_merge

# Bare state dicts of stacks leave their activation open, which other tests are about.
pytestmark = pytest.mark.filterwarnings("ignore::geomerge.errors.AssumptionWarning")

Y = np.arange(60) % 3
X = np.random.default_rng(0).random((60, 4), dtype=np.float32)


def all_labels(task: gm.Task) -> list[int]:
    parts = [split.labels for split in (task.train, task.select, task.test)]
    return sorted(torch.cat(parts).tolist())


LABELS: dict[str, Any] = {
    "a column": Y[:, None],
    "floats": Y.astype(np.float64),
    "a column of floats": Y[:, None].astype(np.float32),
    "one-hot": np.eye(3)[Y],
    "one-hot booleans": np.eye(3)[Y] > 0,
    "bytes": Y.astype(np.uint8),
    "big-endian": Y.astype(">i4"),
}


@pytest.mark.parametrize("case", LABELS)
def test_labels_of_all_forms_are_class_numbers(tmp_path: Path, case: str) -> None:
    np.savez(tmp_path / "d.npz", x=X, y=LABELS[case])
    assert all_labels(gm.load_task(str(tmp_path / "d.npz"))) == sorted(Y.tolist())


def test_names_of_classes_are_numbered_in_their_order(tmp_path: Path) -> None:
    names = np.array(["dog", "ant", "cat"])[Y]
    np.savez(tmp_path / "d.npz", x=X, y=names)
    with pytest.warns(TaskWarning, match="'ant' = 0, 'cat' = 1, 'dog' = 2"):
        task = gm.load_task(str(tmp_path / "d.npz"))
    assert task.class_names == ("ant", "cat", "dog")
    assert all_labels(task) == sorted(Y.tolist())


@pytest.mark.parametrize("labels", [Y + 0.5, np.full(60, np.nan), np.zeros((60, 2, 2)), Y - 5])
def test_other_labels_are_refused(tmp_path: Path, labels: Any) -> None:
    np.savez(tmp_path / "d.npz", x=X, y=labels)
    with pytest.raises(TaskError, match="labels"):
        gm.load_task(str(tmp_path / "d.npz"))


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 4)
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.embed(x).mean(1))


def test_whole_numbers_are_tokens_or_floats_as_the_network_takes_them(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.arange(240).reshape(60, 4) % 9, y=Y)
    task = gm.load_task(str(tmp_path / "d.npz"))
    assert gm.Expert.from_module(Tokens(), task).inputs.raw.dtype == torch.int64
    dense = gm.Expert.from_module(nn.Linear(4, 3), task)
    assert dense.inputs.raw.dtype == torch.float32
    assert dense.inputs.shape == dense.task.input_shape == (4,)


def images(*shape: int) -> Any:
    return np.random.default_rng(1).integers(0, 255, (60, *shape), dtype=np.uint8)


def test_images_get_their_channels_first(tmp_path: Path) -> None:
    np.savez(tmp_path / "last.npz", x=images(8, 8, 3), y=Y)
    with pytest.warns(TaskWarning, match="channels were taken to come last"):
        assert gm.load_task(str(tmp_path / "last.npz")).input_shape == (3, 8, 8)
    np.savez(tmp_path / "none.npz", x=images(8, 8), y=Y)
    assert gm.load_task(str(tmp_path / "none.npz")).input_shape == (1, 8, 8)
    np.savez(tmp_path / "floats.npz", x=images(8, 8) / np.float32(255), y=Y)
    task = gm.load_task(str(tmp_path / "floats.npz"))
    convolution = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 3))
    assert gm.Expert.from_module(convolution, task).inputs.shape == (1, 8, 8)


def test_sizes_and_channels_are_brought_together_on_demand(tmp_path: Path) -> None:
    for k, (mode, side) in enumerate([("RGB", 9), ("L", 12), ("RGBA", 8), ("P", 10), ("LA", 8)]):
        for n in range(6):
            folder = tmp_path / "d" / ("cat", "dog")[n % 2]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(n).integers(0, 255, (side, side), dtype=np.uint8)
            Image.fromarray(pixels).convert(mode).save(folder / f"{k}-{n}.png")
    with pytest.raises(TaskError, match="one size with `image_size`"):
        gm.load_task(str(tmp_path / "d"))
    for channels, expected in ((None, 3), (1, 1), (3, 3)):
        files = ExampleOptions(image_size=8, channels=channels)
        assert gm.load_task(str(tmp_path / "d"), files=files).input_shape == (expected, 8, 8)
    np.savez(tmp_path / "d.npz", x=images(3, 8, 8), y=Y)
    files = ExampleOptions(image_size=6, channels=1)
    assert gm.load_task(str(tmp_path / "d.npz"), files=files).input_shape == (1, 6, 6)


def as_csv(file: Path) -> None:
    table = np.c_[X, Y]
    np.savetxt(file, table, delimiter=",", header="a,b,c,d,label", comments="")


FILES: dict[str, Callable[[Path], None]] = {
    "tuple.pt": lambda f: torch.save((torch.tensor(X), torch.tensor(Y)), f),
    "dict.pth": lambda f: torch.save({"data": torch.tensor(X), "targets": torch.tensor(Y)}, f),
    "dataset.pt": lambda f: torch.save(TensorDataset(torch.tensor(X), torch.tensor(Y)), f),
    "names.npz": lambda f: np.savez(f, train_images=X, train_labels=Y, note=np.array(["x"])),
    "table.csv": as_csv,
    "table.CSV": as_csv,
    "arrays.pkl": lambda f: torch.save({"x": X, "y": Y}, f),
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_examples_are_read(tmp_path: Path, name: str) -> None:
    FILES[name](tmp_path / name)
    task = gm.load_task(str(tmp_path / name))
    assert all_labels(task) == sorted(Y.tolist())
    raw = torch.cat([split.inputs.raw for split in (task.train, task.select, task.test)])
    assert torch.allclose(raw.sum(), torch.tensor(X).sum())


TABLES: dict[
    str, tuple[str, str | None]
] = {  # its text, and what is said of it where it is refused
    "an index, as pandas writes it": (",a,b,label\n", None),
    "semicolons": ("a;b;label\n", None),
    "tabs": ("a\tb\tlabel\n", None),
    "no names": ("", "holds numbers, expected the names of the columns; add a line of names"),
    "decimal commas": ("a;b;label\n", "decimal comma, such as '0,5', expected decimal points"),
}


@pytest.mark.parametrize("case", TABLES)
def test_tables_of_other_programs_are_read_or_named(tmp_path: Path, case: str) -> None:
    head, refusal = TABLES[case]
    between = next((mark for mark in ";\t" if mark in head), ",")
    lines = [[f"{k / 2}", f"{k}", str(k % 3)] for k in range(1, 61)]
    if case == "decimal commas":
        lines = [[cell.replace(".", ",") for cell in line] for line in lines]
    if head.startswith(","):
        lines = [[str(2 * k), *line] for k, line in enumerate(lines)]
    file = tmp_path / "d.csv"
    file.write_text(head + "\n".join(between.join(line) for line in lines) + "\n")
    if refusal is not None:
        with pytest.raises(TaskError, match=refusal):
            gm.load_task(str(file))
        return
    if head.startswith(","):
        with pytest.warns(TaskWarning, match="taken for the index of the rows and left out"):
            task = gm.load_task(str(file))
    else:
        task = gm.load_task(str(file))
    assert task.input_shape == (2,)
    assert all_labels(task) == sorted(k % 3 for k in range(1, 61))


def test_labels_from_one_on_are_said() -> None:
    task = gm.Task.from_tensors(torch.tensor(X), torch.tensor(Y) + 1, name="mine")
    with pytest.raises(TaskError, match="run from 1 to 3, expected class numbers from 0 on; subtr"):
        gm.Expert.from_module(nn.Linear(4, 3), task)
    assert gm.Expert.from_module(nn.Linear(4, 4), task).task is not None


def test_a_parquet_table_is_read_where_pyarrow_is(tmp_path: Path) -> None:
    (tmp_path / "d.parquet").write_bytes(b"PAR1")
    with pytest.raises((TaskError, gm.GeomergeError), match=r"pyarrow|no readable table"):
        gm.load_task(str(tmp_path / "d.parquet"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.mat", b"MATLAB 5.0 MAT-file" + bytes(200), r"is a \.mat file, which is not read"),
        ("d.h5", b"\x89HDF\r\n\x1a\n", r"HDF5.*numpy\.savez"),
        ("d.csv", b"a,b\nsome words,0\n", "table of texts"),
        ("d.csv", b"", "has no rows"),
        ("d.pt", b"version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer"),
    ],
)
def test_other_files_are_named_and_never_unknown_tasks(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TaskError, match=message) as error:
        gm.load_task(str(tmp_path / name))
    assert "unknown task" not in str(error.value)


def test_a_walk_needs_no_labels(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
        torch.save(net.state_dict(), tmp_path / f"{name}.pt")
    np.savez(tmp_path / "x.npz", x=X)
    with pytest.raises(NoLabelsError, match=r"has no labels.*add an array y"):
        gm.load_task(str(tmp_path / "x.npz"))
    np.savez(tmp_path / "d.npz", x=X, y=Y)
    files = [tmp_path / "a.pt", tmp_path / "b.pt"]
    manifold = (f"a={tmp_path / 'x.npz'}",)
    found = check_merge(files, {"manifold": manifold, "task": (f"b={tmp_path / 'd.npz'}",)})
    assert found.problems == []
    assert found.networks["a"]["inputs"] == 60
    assert any("a is not measured" in note and "no labels" in note for note in found.notes)


REFUSALS: dict[str, tuple[nn.Module, Any, str]] = {
    "channels": (
        nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(72, 3)), images(1, 8, 8),
        r"takes images of 3 channels, .* shape \(1, 8, 8\); give `channels` 3",
    ),
    "size, flat": (
        nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), images(1, 8, 8),
        r"takes images of 6 x 6 pixels, .* give `image_size` 6",
    ),
    "size": (
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 3)), images(1, 9, 9),
        r"images of another size .*`image_size`",
    ),
    "floats for tokens": (Tokens(), X, "takes whole numbers such as tokens"),
    "too many tokens": (Tokens(), np.full((60, 4), 30), "numbers under 9 .*the largest is 30"),
    "columns": (nn.Linear(7, 3), X, "takes 7 numbers, .* shape \\(4,\\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_says_what_the_network_takes(tmp_path: Path, case: str) -> None:
    module, x, message = REFUSALS[case]
    np.savez(tmp_path / "d.npz", x=x, y=Y)
    with pytest.raises(TaskError, match=message):
        gm.Expert.from_module(module, gm.load_task(str(tmp_path / "d.npz")))

from __future__ import annotations

import zipfile
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from geomerge import load_task
from geomerge.data import (
    Inputs,
    Normalisation,
    make_task,
    parse_normalisation,
    recorded_normalisation,
    split_normalisations,
)
from geomerge.data.normalisation import PLAIN
from geomerge.errors import OptionError, TaskError


def write_images(folder: Path, count: int = 12, side: int = 6) -> None:
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (folder / label).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 255, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{i}.png")


def test_splits_do_not_overlap_and_are_always_the_same() -> None:
    x = torch.arange(100.0).unsqueeze(1)
    y = torch.arange(100) % 5
    one, two = (make_task("t", (x, y), None, None) for _ in range(2))
    parts = [s.inputs.raw.squeeze(1).tolist() for s in (one.train, one.select, one.test)]
    assert sorted(chain.from_iterable(parts)) == list(range(100))
    assert torch.equal(one.select.inputs.raw, two.select.inputs.raw)
    assert len(parts[1]) == 16
    for split in (one.train, one.select, one.test):
        assert torch.equal(split.labels, split.inputs.raw.squeeze(1).long() % 5)


def test_digits_are_there_offline() -> None:
    plain, permuted = load_task("digits"), load_task("digits-permuted")
    assert plain.classes == 10
    assert plain.input_shape == (1, 8, 8)
    one, two = plain.train.inputs.raw[0].flatten(), permuted.train.inputs.raw[0].flatten()
    assert not torch.equal(one, two)
    assert torch.equal(one.sort().values, two.sort().values)


def test_bytes_are_scaled_and_normalised_per_channel() -> None:
    x = torch.randint(0, 255, (60, 3, 4, 4), dtype=torch.uint8)
    numbers = Normalisation((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    task = make_task("t", (x, torch.arange(60) % 2), None, numbers)
    got = task.train.inputs.batch(slice(0, 5))
    raw = task.train.inputs.raw[:5].float() / 255
    for c in range(3):
        expected = (raw[:, c] - numbers.mean[c]) / numbers.std[c]
        torch.testing.assert_close(got[:, c], expected)


@pytest.mark.parametrize("index", [slice(0, 9), torch.arange(9)], ids=["slice", "numbers"])
@pytest.mark.parametrize("normalisation", [PLAIN, Normalisation((0.5,), (2.0,))])
@pytest.mark.parametrize("raw", [torch.rand(20, 5), torch.ones(20, 5, dtype=torch.uint8)])
def test_what_is_done_to_a_batch_is_not_done_to_the_data(
    raw: torch.Tensor, normalisation: Normalisation, index: slice | torch.Tensor
) -> None:
    inputs, before = Inputs(raw, normalisation), raw.clone()
    batch = inputs.batch(index)
    again = batch.clone()
    batch.zero_()
    assert torch.equal(raw, before)
    assert torch.equal(inputs.batch(index), again)


def test_normalisation_is_measured_where_none_is_given() -> None:
    x = torch.randint(0, 255, (600, 3, 4, 4), dtype=torch.uint8)
    task = make_task("t", (x, torch.arange(600) % 2), None, None)
    batch = task.train.inputs.batch(slice(0, None))
    assert float(batch.mean()) == pytest.approx(0, abs=1e-3)
    assert float(batch.std()) == pytest.approx(1, abs=1e-2)


def test_image_folders_and_zips_give_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split in ("train", "test"):
        write_images(tmp_path / "cifar10-images" / split)
    with zipfile.ZipFile(tmp_path / "cifar10-images.zip", "w") as archive:
        for file in sorted((tmp_path / "cifar10-images").rglob("*.png")):
            archive.write(file, str(file.relative_to(tmp_path / "cifar10-images")))
    folder = load_task(str(tmp_path / "cifar10-images"), normalisation=Normalisation((0,), (1,)))
    zipped = load_task("cifar10", data_root=tmp_path, normalisation=Normalisation((0,), (1,)))
    assert folder.input_shape == zipped.input_shape == (3, 6, 6)
    assert torch.equal(folder.test.inputs.raw, zipped.test.inputs.raw)
    assert torch.equal(folder.test.labels, zipped.test.labels)


def test_npz_and_factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(90, 7)), np.arange(90) % 3
    np.savez(tmp_path / "d.npz", x=x, y=y, x_test=x[:20], y_test=y[:20])
    task = load_task(str(tmp_path / "d.npz"))
    assert (task.classes, task.input_shape, len(task.test.labels)) == (3, (7,), 20)
    (tmp_path / "mytask_for_test.py").write_text(
        "import numpy as np\ndef make(): return {'x': np.zeros((50, 2)), 'y': np.arange(50) % 2}\n"
        "def wrong(): return 1\n"
    )
    monkeypatch.chdir(tmp_path)
    assert load_task("mytask_for_test:make").classes == 2
    with pytest.raises(TaskError, match="returned an int"):
        load_task("mytask_for_test:wrong")


def test_bad_data_ends_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="did you mean 'mnist'"):
        load_task("mnits")
    with pytest.raises(TaskError, match="allow torchvision to fetch it with `download`"):
        load_task("mnist", data_root=tmp_path)
    np.savez(tmp_path / "wrong.npz", other=np.zeros(3))
    with pytest.raises(TaskError, match="expected arrays x and y"):
        load_task(str(tmp_path / "wrong.npz"))
    np.savez(tmp_path / "short.npz", x=np.zeros((3, 2)), y=np.zeros(3, int))
    with pytest.raises(TaskError, match="3 training examples, expected at least 10"):
        load_task(str(tmp_path / "short.npz"))
    np.savez(tmp_path / "uneven.npz", x=np.zeros((30, 2)), y=np.zeros(29, int))
    with pytest.raises(TaskError, match="30 training inputs and 29 labels"):
        load_task(str(tmp_path / "uneven.npz"))
    np.savez(tmp_path / "pickled.npz", x=np.array([{}], dtype=object), y=np.zeros(1))
    with pytest.raises(TaskError, match="plain arrays"):
        load_task(str(tmp_path / "pickled.npz"))
    (tmp_path / "nothing.npz").write_bytes(b"")
    with pytest.raises(TaskError, match="not a readable"):
        load_task(str(tmp_path / "nothing.npz"))
    (tmp_path / "cifar10-images.zip").write_bytes(b"PK no zip")
    with pytest.raises(TaskError, match="not a whole zip"):
        load_task("cifar10", data_root=tmp_path)
    (tmp_path / "empty" / "cat").mkdir(parents=True)
    with pytest.raises(TaskError, match="no images"):
        load_task(str(tmp_path / "empty"))


def test_classes_are_numbered_by_the_training_data(tmp_path: Path) -> None:
    write_images(tmp_path / "d" / "train")
    write_images(tmp_path / "d" / "test")
    (tmp_path / "d" / "train" / ".hidden").mkdir()
    for file in (tmp_path / "d" / "test" / "cat").iterdir():
        file.unlink()
    (tmp_path / "d" / "test" / "cat").rmdir()
    assert set(load_task(str(tmp_path / "d")).test.labels.tolist()) == {1}
    (tmp_path / "d" / "test" / "wolf").mkdir()
    with pytest.raises(TaskError, match="'wolf'"):
        load_task(str(tmp_path / "d"))


def test_normalisations_are_read_and_recorded() -> None:
    numbers = parse_normalisation("0.1,0.2/0.5")
    assert numbers == Normalisation((0.1, 0.2), (0.5,))
    assert split_normalisations(["a:b=0/1"]) == {"a:b": Normalisation((0.0,), (1.0,))}
    meta = {"task": "mnist", "normalisation": numbers.to_json()}
    assert recorded_normalisation(meta, "mnist") == numbers
    assert recorded_normalisation(meta, "other") is None
    for wrong in ("0.1", "x/y", ""):
        with pytest.raises(OptionError, match="MEAN/STD"):
            parse_normalisation(wrong)


def test_real_data_has_the_usual_sizes(real_data: Path) -> None:
    task = load_task("mnist", data_root=real_data)
    assert [len(s.labels) for s in (task.train, task.select, task.test)] == [55000, 5000, 10000]
    assert float(task.train.inputs.batch(slice(0, 5000)).mean()) == pytest.approx(0, abs=0.02)


def test_some_classes_of_a_task_are_numbered_from_zero() -> None:
    whole, part = load_task("digits"), load_task("digits@7,0-2")
    assert part.classes == 4
    assert part.name == "digits@7,0-2"
    assert part.normalisation == whole.normalisation
    examples = sum(len(s.labels) for s in (part.train, part.select, part.test))
    labels = torch.cat([s.labels for s in (whole.train, whole.select, whole.test)])
    assert examples == sum(int((labels == k).sum()) for k in (7, 0, 1, 2))
    moved = part.shifted(4)
    assert torch.equal(moved.select.labels, part.select.labels + 4)
    assert moved.classes == 8


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digits@8-12", "asks for class 10"),
        ("digits@4-2", "expected classes such as 0-4"),
        ("digits@1,1", "expected classes such as 0-4"),
        ("digit@0-4", "did you mean 'digits'"),
    ],
)
def test_classes_that_are_not_there_are_refused(name: str, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        load_task(name)

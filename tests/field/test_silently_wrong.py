"""Situations that once ended with exit code 0 and a wrong result: each is said, held or refused."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image
from small_streams import learn
from torch import Tensor, nn

import geomerge as gm
from geomerge.data import Normalisation
from geomerge.errors import CheckpointError, Problems
from geomerge.merging import beside
from geomerge.merging.beside import better_than_picked, comparison
from geomerge.merging.choice import plan_merge
from geomerge.merging.prepare import prepare

Command: TypeAlias = Callable[..., subprocess.CompletedProcess[str]]


def task_of(name: str = "stripes", seed: int = 0, count: int = 120) -> gm.Task:
    """Return a task of three classes that a linear network can learn."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 3
    x = torch.randn(count, 6, generator=generator)
    x[torch.arange(count), y] += 3
    return gm.Task.from_tensors(x, y, name=name)


class WithBuffer(nn.Module):
    """A linear network with a buffer that its inputs pass."""

    def __init__(self, value: Tensor, use: Callable[[Tensor, Tensor], Tensor], keep: bool) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3)
        self.use = use
        self.register_buffer("own", value, persistent=keep)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.use(x, self.own))


class Following(nn.Module):
    """A statistic of its own make, which training changes."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3)
        self.register_buffer("level", torch.tensor([value]))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.level = 0.9 * self.level + 0.1 * x.mean().detach()
        return self.head(x - self.level)


def permuted(x: Tensor, order: Tensor) -> Tensor:
    return x[:, order]


def masked(x: Tensor, mask: Tensor) -> Tensor:
    return x * mask


def unused(x: Tensor, count: Tensor) -> Tensor:
    return x


ORDERS = torch.arange(6), torch.tensor([5, 4, 3, 2, 1, 0])
MASKS = torch.arange(6) < 3, torch.arange(6) > 2


@pytest.mark.parametrize("keep", [True, False], ids=["stored", "not stored"])
@pytest.mark.parametrize(
    ("values", "use"),
    [
        (ORDERS, permuted),
        (MASKS, masked),
        (tuple(mask.float() for mask in MASKS), masked),
        ((torch.tensor(2), torch.tensor(3)), masked),
    ],
    ids=["permutation", "mask", "mask of floats", "number"],
)
def test_constants_that_differ_are_refused_by_name(
    values: tuple[Tensor, Tensor], use: Callable[[Tensor, Tensor], Tensor], keep: bool
) -> None:
    modules = [WithBuffer(value, use, keep) for value in values]
    experts = [gm.Expert.from_module(m, task_of(n)) for m, n in zip(modules, "ab", strict=True)]
    with pytest.raises(CheckpointError, match=r"a and b differ in 'own'"):
        gm.merge(experts, steps=1)
    assert any("'own'" in problem for problem in gm.check(experts).problems)


@pytest.mark.parametrize(
    "make",
    [
        lambda k: WithBuffer(torch.tensor(k), unused, True),
        lambda k: WithBuffer(ORDERS[0].clone(), permuted, True),
        lambda k: Following(float(k)),
        lambda k: nn.Sequential(nn.BatchNorm1d(6, momentum=0.1 * k), nn.Linear(6, 3)),
        lambda k: nn.utils.parametrizations.spectral_norm(nn.Linear(6, 3)),
    ],
    ids=["counter", "equal", "own statistic", "BatchNorm", "spectral norm"],
)
def test_statistics_and_counters_may_differ(make: Callable[[int], nn.Module]) -> None:
    modules = [make(k) for k in (1, 2)]
    for k, module in enumerate(modules):
        module(torch.randn(20, 6) + k)  # statistics of their own
    experts = [gm.Expert.from_module(m, task_of(n)) for m, n in zip(modules, "ab", strict=True)]
    assert prepare(experts, gm.MergeOptions(), Problems(strict=True)) is not None


def test_without_inputs_only_single_numbers_are_taken_for_counters() -> None:
    for values, fits in (((torch.tensor(2), torch.tensor(3)), True), (ORDERS, False)):
        a, b = (WithBuffer(value, permuted, True) for value in values)
        a.use = b.use = unused
        experts = [gm.Expert.from_module(a, task_of()), gm.Expert.from_module(b)]
        problems = Problems()
        prepare(experts, gm.MergeOptions(), problems)
        assert (problems == []) is fits


def frozen(seed: int) -> nn.Sequential:
    """Return a network whose first layers are frozen: a shared backbone."""
    torch.manual_seed(0)
    backbone = nn.Linear(6, 8), nn.BatchNorm1d(8)
    module = nn.Sequential(*backbone, nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    torch.manual_seed(seed)
    with torch.no_grad():  # near each other, so that paths between them are short
        for layer in (module[3], module[5]):
            layer.weight.add_(0.05 * torch.randn_like(layer.weight))
    for layer in backbone:
        layer.requires_grad_(False)
    backbone[1].running_mean.fill_(0.3)
    return module


def assert_backbone_kept(module: nn.Module) -> None:
    for name, tensor in frozen(0)[:2].state_dict().items():
        assert torch.equal(module.get_submodule(name[0]).state_dict()[name[2:]], tensor), name


@pytest.mark.parametrize(
    "options",
    [
        {"preset": "joint"},
        pytest.param({"preset": "joint", "metric": "exact"}, marks=pytest.mark.slow),
        pytest.param({"preset": "joint", "relax": True}, marks=pytest.mark.slow),
        {"preset": "joint", "budget": {"a": 0.01}},
        {"preset": "joint", "learn": "damping"},
        {"preset": "sketch"},
        {"preset": "paper"},
        {"preset": "joint", "metric": "euclidean"},
        {"preset": "joint", "head": "separate", "align": "weights"},
    ],
    ids=str,
)
def test_frozen_weights_stay_to_the_bit_in_merges(options: dict[str, object]) -> None:
    tasks = [task_of("a", 1), task_of("b", 2)]
    experts = [gm.Expert.from_module(frozen(k), task) for k, task in enumerate(tasks)]
    merged = gm.merge(experts, steps=3, points=8, bn="re-estimate", **options)
    for t in (0, 0.3, merged.t, 0.8, 1):
        assert_backbone_kept(merged.path.module(t))
    module = merged.module()
    assert [name for name, p in module.named_parameters() if not p.requires_grad] == [
        "0.weight", "0.bias", "1.weight", "1.bias",
    ]  # fmt: skip
    assert not torch.equal(merged.path.module(0.5)[3].weight, frozen(0)[3].weight)


def test_frozen_weights_stay_where_three_are_merged_and_in_comparisons() -> None:
    tasks = [task_of(name, k) for k, name in enumerate("abc")]
    experts = [gm.Expert.from_module(frozen(k), task) for k, task in enumerate(tasks)]
    assert_backbone_kept(gm.merge(experts, steps=2, points=8).module())
    methods = ("average", "slerp", "fisher", "regmean", "joint-training", "fine-tuning")
    found = gm.compare(experts[:2], only=methods, max_samples=300)
    for row in found.rows:
        assert row.result is not None, row.reason
        assert_backbone_kept(found.space.network.module_at(row.result.answer))


def test_frozen_weights_that_differ_are_said_to_move() -> None:
    modules = [frozen(0), frozen(1)]
    with torch.no_grad():
        modules[1][0].weight.add_(1)
    experts = [gm.Expert.from_module(m, task_of(n)) for m, n in zip(modules, "ab", strict=True)]
    merged = gm.merge(experts, steps=1, points=8)
    assert any("'0.weight' is frozen" in note for note in merged.notes)
    assert torch.equal(merged.module()[0].bias, frozen(0)[0].bias)


@pytest.mark.parametrize(
    "options",
    [
        {"sparsity": 0.5},
        {"sparsity": 0.5, "walk": "pull"},
        {"sparsity": 0.5, "labels": True},
        {"nm": "2:4"},
        {"remove": {"3": 2}},
        {"remove": {"3": 2}, "choice": "rates"},
    ],
    ids=str,
)
def test_frozen_weights_stay_to_the_bit_in_sparse_networks(options: dict[str, object]) -> None:
    dense = gm.Expert.from_module(frozen(0), task_of())
    result = gm.sparsify(dense, stages=2, steps=4, points=8, bn="re-estimate", **options)
    assert_backbone_kept(result.module())
    assert result.rows[-1].zeros > 0


def test_units_of_frozen_layers_are_not_removed_nor_restored() -> None:
    dense = gm.Expert.from_module(frozen(0), task_of())
    with pytest.raises(gm.GeomergeError, match="frozen"):
        gm.sparsify(dense, remove={"0": 2}, stages=1, steps=1)
    plan = [gm.PlanStep("small", {"3": 4}), gm.PlanStep("back", restore={"3": 2})]
    result = gm.reconfigure(dense, plan, stages=1, steps=2, points=8, bn="re-estimate")
    for configuration in result.configurations:
        assert_backbone_kept(configuration.module())


def test_a_network_that_requires_no_gradient_at_all_has_nothing_frozen() -> None:
    experts = [
        gm.Expert.from_module(frozen(k).requires_grad_(False), task_of("ab"[k])) for k in (0, 1)
    ]
    assert not experts[0].network.frozen
    assert all(p.requires_grad for p in experts[0].module().parameters())


@pytest.mark.parametrize("how", ["requires_grad", "optimizer"])
def test_frozen_weights_stay_to_the_bit_in_streams(how: str) -> None:
    model = frozen(0)
    model.requires_grad_(True)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    if how == "requires_grad":
        model[3].requires_grad_(False)
        held = list(model.parameters())
    else:
        held = [p for name, p in model.named_parameters() if name[0] != "3"]
    learn(model, torch.optim.SGD(held, lr=0.1))
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert "0.weight" in moved
    assert moved.isdisjoint({"3.weight", "3.bias"})


@pytest.mark.parametrize(
    ("command", "file"),
    [
        ("train --manifold digits --epochs 0 --no-sketch --out out.pt", "out.pt"),
        ("sketch a.pt --manifold digits --inputs 10 --out out.safetensors", "out.safetensors"),
        ("inspect a.pt --manifold digits --inputs 20 --out out.json", "out.json"),
        ("path runs --out out.pt", "out.pt"),
        ("demo --out .", "a.pt"),
    ],
)
def test_commands_replace_no_file_without_force(
    command: str, file: str, geomerge: Command, tmp_path: Path
) -> None:
    (tmp_path / file).write_bytes(b"something of the user's")
    failed = geomerge(*command.split(), cwd=tmp_path)
    assert failed.returncode == 2
    assert f"{file} exists" in failed.stderr
    assert "choose another --out" in failed.stderr
    assert (tmp_path / file).read_bytes() == b"something of the user's"


def test_force_replaces_a_file(geomerge: Command, tmp_path: Path) -> None:
    words = ["train", "--manifold", "digits", "--epochs", "0", "--no-sketch", "--out", "a.pt"]
    for more in ([], ["--force", "--seed", "1"]):
        assert geomerge(*words, *more, cwd=tmp_path).returncode == 0
    assert gm.load_checkpoint(tmp_path / "a.pt").meta["training"]["seed"] == 1


def trained(task: gm.Task, seed: int = 0, steps: int = 60) -> nn.Sequential:
    """Return a linear network that was trained for a task."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Flatten(), nn.Linear(task.train.inputs.batch(slice(0, 1)).numel(), 3))
    x, y = task.train.inputs.batch(slice(None)), task.train.labels
    optimizer = torch.optim.Adam(module.parameters(), 0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x), y).backward()
        optimizer.step()
    return module


def turned(task: gm.Task, name: str) -> gm.Task:
    """Return a task with the same inputs, whose every label is another."""
    splits = {
        part: replace(split, labels=(split.labels + 1) % 3)
        for part in ("train", "select", "test")
        if (split := getattr(task, part))
    }
    return replace(task, name=name, **splits)


def notes_on(experts: list[gm.Expert], **options: object) -> str:
    planned = plan_merge(experts, gm.MergeOptions(**options), Problems(strict=True))
    assert planned is not None
    return "\n".join(planned[0].prepared.notes)


def test_check_measures_each_network_and_asks_whether_tasks_are_exchanged() -> None:
    first = task_of("first", count=1200)
    second = turned(first, "second")
    modules = trained(first), trained(second)
    right = [gm.Expert.from_module(m, t) for m, t in zip(modules, (first, second), strict=True)]
    found = gm.check(right)
    assert found.networks["a"]["accuracy"] > 0.9
    assert found.networks["a"]["examples"] == 200
    assert not any("exchanged" in note or "chance" in note for note in found.notes)
    wrong = [gm.Expert.from_module(m, t) for m, t in zip(modules, (second, first), strict=True)]
    assert "a answers second at chance" in notes_on(wrong)
    assert "exchanged?" in notes_on(wrong)
    merged = gm.merge(wrong, steps=1, points=8)
    assert any("exchanged?" in note for note in merged.notes)
    one = [gm.Expert.from_module(modules[0], task) for task in (second, first)]
    assert "exchanged" not in notes_on(one)
    assert "a answers second at chance" in notes_on(one)


@pytest.mark.parametrize(
    ("used", "said"),
    [
        (Normalisation((0.0,), (1.0,)), "without any normalisation"),
        (Normalisation((0.5,), (0.5,)), r"[-1, 1]"),
        (Normalisation((0.0,), (1 / 255,)), "bytes that are not scaled"),
        (None, None),
    ],
    ids=str,
)
def test_a_network_of_another_normalisation_is_told_so(
    used: Normalisation | None, said: str | None
) -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(1200) % 3
    x = torch.randint(0, 10, (1200, 1, 2, 3), generator=generator) + 80 * y[:, None, None, None]
    task = gm.Task.from_tensors(
        x.byte(), y, name="grey", normalisation=Normalisation((0.9,), (0.1,))
    )
    seen = gm.Task.from_tensors(x.byte(), y, normalisation=used or task.normalisation)
    modules = [trained(seen, seed, 400) for seed in (0, 1)]
    notes = notes_on([gm.Expert.from_module(module, task) for module in modules])
    assert ("hardly trained with this normalisation" in notes) is (said is not None)
    assert said is None or (said in notes and "`normalisation` grey=" in notes)


def test_outputs_of_a_softmax_are_said() -> None:
    task = task_of("first", count=1200)
    module = trained(task)
    for last, said in ((nn.Softmax(dim=1), True), (nn.LogSoftmax(dim=1), False)):
        experts = [gm.Expert.from_module(nn.Sequential(m, last), task) for m in (module, module)]
        assert ("the outputs of a are probabilities" in notes_on(experts)) is said


def test_small_splits_equal_weights_and_filled_zeros_are_said() -> None:
    small, large = task_of("small"), task_of("large", count=1200)
    module = trained(large)
    twice = [gm.Expert.from_module(module, task) for task in (large, small)]
    notes = notes_on(twice)
    assert "the accuracies on small are of 20 test and 20 selection examples" in notes
    assert "accuracies on large" not in notes
    assert "the same weights" in notes
    others = [trained(large, seed) for seed in (1, 2)]
    assert "the same weights" not in notes_on([gm.Expert.from_module(m, large) for m in others])
    with torch.no_grad():
        for k, other in enumerate(others):
            other[1].weight[:, k : k + 3] = 0
    sparse = [gm.Expert.from_module(m, large) for m in others]
    said = "50.0% of those of a and 50.0% of those of b are zero"
    assert said in notes_on(sparse)
    assert "`keep_zeros` keeps those that are zero in every network, 33.3%" in notes_on(sparse)
    assert said not in notes_on(sparse, keep_zeros=True)


def test_a_crossover_that_is_worse_than_an_end_or_the_line_is_said_first() -> None:
    task = task_of(count=1200)
    experts = [gm.Expert.from_module(trained(task, seed), task) for seed in (0, 1)]
    merged = gm.merge(experts, steps=1, points=8)
    rows = comparison(merged)
    names = [row.name for row in rows]
    assert better_than_picked(merged, rows, 0.5) is None  # all are good
    for better, how in (("b", "t = 1"), ("straight line", "0.3 a + 0.7 b")):
        worse = [
            replace(row, select={"a": 0.9 if row.name == better else 0.6, "b": 0.95})
            for row in rows
        ]
        said = better_than_picked(merged, worse, 0.7)
        assert said is not None
        assert said.startswith("the crossover is worse than")
        assert better in said
        assert how in said
        assert "60.0 % against 90.0 %" in said
    assert names[-1] == "crossover"


def test_rows_that_take_longer_than_a_large_merge_are_left_out() -> None:
    task = task_of(count=1200)
    experts = [gm.Expert.from_module(trained(task, seed), task) for seed in (0, 1)]
    with patch.object(beside, "LARGE", 1):
        merged = gm.merge(experts, steps=1, points=8)
        names = [row.name for row in comparison(merged)]
    assert names == ["a", "b", "straight line", "crossover"]
    assert any("without Euclidean walk and joint training" in note for note in merged.notes)


def test_a_reference_that_hardly_trained_is_marked() -> None:
    task = task_of(count=1200)
    experts = [gm.Expert.from_module(trained(task, seed), task) for seed in (0, 1)]
    with patch.object(
        beside, "train_jointly", lambda space, *_: (torch.zeros_like(space.middle()), 9)
    ):
        merged = gm.merge(experts, steps=1, points=8)
        rows = {row.name: row for row in comparison(merged)}
    assert rows["joint training"].hardly_trained
    assert not rows["crossover"].hardly_trained
    assert any("hardly trained" in note for note in merged.notes)


def write_images(folder: Path, classes: Sequence[str], count: int = 12) -> None:
    for k, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(np.full((4, 4), 60 * k + i, np.uint8)).save(folder / name / f"{i}.png")


class Named(torch.utils.data.TensorDataset):
    def __init__(self, *classes: str) -> None:
        y = torch.arange(60) % len(classes)
        super().__init__(torch.randn(60, 6), y)
        self.classes = list(classes)


def of_folders(first: Sequence[str], second: Sequence[str], place: Path) -> list[gm.Task]:
    for name, classes in (("A", first), ("B", second)):
        write_images(place / name, classes)
    return [gm.load_task(str(place / name)) for name in "AB"]


def of_datasets(first: Sequence[str], second: Sequence[str], place: Path) -> list[gm.Task]:
    datasets = (torch.utils.data.Subset(Named(*names), range(60)) for names in (first, second))
    return [
        gm.Task.from_dataset(data, name=name) for data, name in zip(datasets, "AB", strict=True)
    ]


@pytest.mark.parametrize("make", [of_folders, of_datasets])
@pytest.mark.parametrize(
    ("second", "said"),
    [
        (("ant", "cat", "dog"), "'cat' is class 0 of"),
        (("dog", "fox"), "'dog' is class 1 of"),
        (("cat", "dog"), None),
        (("one", "two", "three"), None),
    ],
    ids=str,
)
def test_one_name_of_a_class_has_one_number_in_a_shared_head(
    second: Sequence[str], said: str | None, make: Callable[..., list[gm.Task]], tmp_path: Path
) -> None:
    tasks = make(("cat", "dog", "fox"), second, tmp_path)
    n = tasks[0].train.inputs.batch(slice(0, 1)).numel()
    modules = [nn.Sequential(nn.Flatten(), nn.Linear(n, 3)) for _ in tasks]
    experts = [gm.Expert.from_module(m, task) for m, task in zip(modules, tasks, strict=True)]
    problems = Problems()
    prepare(experts, gm.MergeOptions(), problems)
    assert len(problems) == (said is not None)
    assert said is None or said in problems[0]
    assert prepare(experts, gm.MergeOptions(head="offset"), Problems(strict=True)) is not None


def test_classes_keep_their_names_where_some_are_taken(tmp_path: Path) -> None:
    write_images(tmp_path / "A", ("cat", "dog", "fox"))
    assert gm.load_task(f"{tmp_path / 'A'}@2,0").class_names == ("fox", "cat")
    with pytest.raises(gm.GeomergeError, match="one class has two numbers"):
        gm.Task.from_dataset(Named("cat", "dog", "fox"), test=Named("dog", "fox"))


@pytest.mark.parametrize("name", ["test", "val", "valid", "validation"])
def test_held_out_folders_are_the_test_split(name: str, tmp_path: Path) -> None:
    write_images(tmp_path / "train", "abc")
    write_images(tmp_path / name, "abc", 10)
    task = gm.load_task(str(tmp_path))
    assert len(task.test.labels) == 30
    assert len(task.train.labels) + len(task.select.labels) == 36


def test_validation_beside_a_test_split_is_for_selection(tmp_path: Path) -> None:
    for split, count in (("train", 12), ("val", 11), ("test", 10)):
        write_images(tmp_path / split, "abc", count)
    task = gm.load_task(str(tmp_path))
    assert [len(s.labels) for s in (task.train, task.select, task.test)] == [36, 33, 30]


def test_train_may_be_the_name_of_a_class(tmp_path: Path) -> None:
    write_images(tmp_path, ("bus", "train"))
    assert gm.load_task(str(tmp_path)).class_names == ("bus", "train")


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_validation_arrays_are_the_test_split(name: str, tmp_path: Path) -> None:
    x, y = np.zeros((30, 4), np.float32), np.arange(30) % 3
    arrays = {"x_train": x, "y_train": y, f"x_{name}": x[:12], f"y_{name}": y[:12]}
    np.savez(tmp_path / "a.npz", **arrays)
    assert len(gm.load_task(str(tmp_path / "a.npz")).test.labels) == 12


@pytest.mark.parametrize(
    ("values", "use"),
    [(ORDERS, permuted), (tuple(mask.float() for mask in MASKS), masked)],
    ids=["permutation", "mask of floats"],
)
def test_each_task_keeps_its_own_constants_where_heads_are_separate(
    values: tuple[Tensor, Tensor], use: Callable[[Tensor, Tensor], Tensor], tmp_path: Path
) -> None:
    tasks = [task_of("first", 1, 1200), task_of("second", 2, 1200)]
    torch.manual_seed(0)
    modules = [WithBuffer(value, use, True) for value in values]
    experts = [gm.Expert.from_module(m, task) for m, task in zip(modules, tasks, strict=True)]
    merged = gm.merge(experts, head="separate", steps=2, points=8)
    for expert, module, task in zip(experts, modules, tasks, strict=True):
        x = task.test.inputs.batch(slice(None))
        found = merged.expert_for(task.name)
        made = merged.module(task.name)
        assert torch.equal(made.own, module.own)
        torch.testing.assert_close(made(x), found.network.logits(found.weights, x))
        # Either end of the path is the network as it came.
        t = float(task is tasks[1])
        end = merged.path.expert(t).with_task(task)
        torch.testing.assert_close(end.network.logits(end.weights, x), module(x).detach())
        assert expert.accuracy() == end.accuracy()
    merged.save(tmp_path / "run")
    stored = gm.load_checkpoint(tmp_path / "run" / "merged.safetensors")
    again = gm.Expert.from_checkpoint(stored, lambda: WithBuffer(values[0], use, True))
    for task in tasks:
        assert again.accuracy(task=task) == merged.expert_for(task.name).accuracy()
    broken = {**stored.meta["head"]["tasks"]["first"], "constants": {"own": {"values": "x"}}}
    meta = {"head": {**stored.meta["head"], "tasks": {"first": broken}}}
    with pytest.raises(CheckpointError, match="not those of the network"):
        replace(again, meta=meta).with_task(tasks[0])
    with pytest.raises(gm.GeomergeError, match="cannot keep for each task"):
        gm.compare(experts, head="separate")


def test_evaluate_and_sparsify_tell_of_another_normalisation(
    geomerge: Command, tmp_path: Path
) -> None:
    y = torch.arange(300) % 3
    x = (torch.randint(0, 10, (300, 1, 2, 3)) + 80 * y[:, None, None, None]).byte()
    np.savez(tmp_path / "grey.npz", x=x.numpy(), y=y.numpy())
    plain = gm.Task.from_tensors(x, y, normalisation=Normalisation((0.0,), (1.0,)))
    torch.save(trained(plain, 0, 400).state_dict(), tmp_path / "a.pt")
    words = ["a.pt", "--manifold", "grey.npz", "--arch", "net:make"]
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef make(): return nn.Sequential(nn.Flatten(), nn.Linear(6, 3))\n"
    )
    words += ["--normalisation", "grey.npz=0.9/0.1"]
    told = geomerge("evaluate", *words, cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    assert "give --normalisation grey.npz=0/1" in told.stdout
    told = geomerge("inspect", *words, "--inputs", "50", cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    flat = " ".join(told.stdout.split())
    assert "give --normalisation grey.npz=0/1" in flat
    assert "are of 50 test and 50 selection examples" in flat

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from geomerge import (
    Checkpoint,
    CompareOptions,
    Expert,
    MergeOptions,
    ReconfigureOptions,
    SparsifyOptions,
    Task,
    check,
    inspect,
    load_task,
    merge,
    save_checkpoint,
)
from geomerge.errors import OptionError, Problems, TaskError
from geomerge.expert_options import DataOptions, ExpertOptions
from geomerge.loading import given_expert, given_experts, load_expert, load_experts
from geomerge.options import recorded

TASKS = ("digits", "digits-permuted")


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two networks that record their tasks, and a sketch in the second file."""
    folder = tmp_path_factory.mktemp("files")
    for seed, (name, task) in enumerate(zip("ab", TASKS, strict=True)):
        meta = {"architecture": "mlp", "task": task}
        if name == "b":
            meta["training"] = {"selection_seed": 0}
        save_checkpoint(folder / f"{name}.pt", Checkpoint(network(seed).state_dict(), meta))
    whole = Expert.load(folder / "b.pt").with_sketch(inputs=50)
    whole.save(folder / "b.pt")
    return [folder / "a.pt", folder / "b.pt"]


def test_manifolds_go_to_the_networks_that_are_for_them(files: list[Path]) -> None:
    for manifold in (("digits-permuted",), ("b=digits-permuted",)):
        a, b = load_experts(files, DataOptions(manifold=manifold))
        assert (a.name, b.name) == ("a", "b")
        assert a.inputs is None
        assert b.inputs is not None
        assert b.inputs.name == "digits-permuted"
        assert [e.task.name for e in (a, b) if e.task] == list(TASKS)
    a, b = load_experts(files, DataOptions(manifold=("a=digits-permuted",)))
    assert a.task is not None
    assert a.inputs is not None
    assert (a.task.name, a.inputs.name) == TASKS
    assert any("trained for digits, and its function is kept on" in note for note in a.notes)


def test_notes_say_what_is_not_known(files: list[Path]) -> None:
    a, b = load_experts(files)
    assert [note for note in a.notes if "may have seen the selection split of digits" in note]
    assert b.notes == ()
    assert b.sketch is not None
    bare = Expert.from_module(network(0))
    first, second = load_experts([bare, files[1]])
    assert first.notes == ("a is not measured: its task is not known",)
    assert second.name == "b"


def test_objects_serve_as_their_names_do(files: list[Path]) -> None:
    task = load_task("digits")
    a, b = load_experts(
        [network(0), files[1]], DataOptions(manifold=(task,), arch=lambda: network(5))
    )
    assert a.task is task
    assert a.inputs is task.train.inputs
    assert b.inputs is None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"manifold": ("c=digits",)}, "`manifold` names network 'c'"),
        ({"task": ("c=digits",)}, "`task` names network 'c'"),
        ({"manifold": ("digits", *TASKS)}, "at most 2 manifolds"),
        ({"task": ("a=digts",)}, "did you mean 'digits'"),
        ({"manifold": ("a=digts",)}, "did you mean 'digits'"),
        ({"normalisation": ("digit=0/1",)}, "did you mean 'digits'"),
        ({"device": "cuda:77"}, "cannot compute on 'cuda:77'"),
    ],
)
def test_what_cannot_be_is_refused(
    files: list[Path], data: dict[str, object], message: str
) -> None:
    options = DataOptions(**data)  # type: ignore[arg-type]
    with pytest.raises((OptionError, TaskError), match=message):
        load_experts(files, options)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"manifold": ("a=x", "a=y")}, "two manifolds for a"),
        ({"sketch": ("file",)}, "one `sketch` for each network, such as b=file"),
        ({"task": ("a=x", "a=y")}, "one `task` for each network"),
        ({"normalisation": ("mnist",)}, "TASK=MEAN/STD"),
    ],
)
def test_texts_are_checked_before_any_work(data: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        DataOptions(**data)  # type: ignore[arg-type]


def test_problems_are_collected_and_the_others_loaded(files: list[Path]) -> None:
    problems = Problems()
    experts = load_experts([files[0], "nowhere.pt"], DataOptions(manifold=("digts",)), problems)
    assert [expert.name for expert in experts] == ["a"]
    assert len(problems) == 2
    assert "no file nowhere.pt" in problems[0]
    assert "did you mean 'digits'" in problems[1]


def test_sketches_of_files_are_of_the_output_that_is_wanted(files: list[Path]) -> None:
    from geomerge.metrics import save_sketch

    sketch = Expert.load(files[0]).with_sketch(inputs=20).sketch
    assert sketch is not None
    save_sketch(files[0].with_name("a-sketch.safetensors"), sketch)
    data = DataOptions(sketch=(f"a={files[0].with_name('a-sketch.safetensors')}",))
    assert load_experts(files, data, output="hellinger")[0].sketch is not None
    with pytest.raises(OptionError, match="measures hellinger, expected logits"):
        load_experts(files, data, output="logits")


def test_one_network_comes_with_its_task_and_inputs(files: list[Path]) -> None:
    expert = load_expert(files[0])
    assert expert.task is not None
    assert expert.inputs is expert.task.train.inputs
    other = load_expert(files[0], ExpertOptions(manifold="digits-permuted"))
    assert other.task is not None
    assert other.task.name == "digits-permuted"
    with pytest.raises(OptionError, match=r"does not record its task.*`manifold`"):
        load_expert(network(0))
    task = Task.from_tensors(torch.randn(60, 64), torch.arange(60) % 10, name="mine")
    assert load_expert(network(0), ExpertOptions(manifold=task)).task is task


def test_recipes_hold_what_decides_the_result() -> None:
    assert set(recorded(DataOptions(), "sketch")) == {"manifold", "task", "arch", "normalisation"}
    assert set(recorded(ExpertOptions())) == {"manifold", "arch", "normalisation"}


def test_data_stands_beside_the_networks_of_a_recipe(tmp_path: Path) -> None:
    module = network(0)
    file = tmp_path / "b.pt"
    torch.save(network(1).state_dict(), file)
    split = load_task("digits").train
    data = TensorDataset(split.inputs.batch(slice(0, 200)), split.labels[:200])
    state = Checkpoint(network(2).state_dict(), {"architecture": "mlp"})
    for inputs in ("digits", ["digits"], load_task("digits"), data, DataLoader(data, 50)):
        for things in ([module, state], [module.state_dict(), network(1)]):
            (first, _) = given_experts(things, {"inputs": inputs, "arch": "mlp"})
            assert first.inputs is not None
            assert first.task is not None
    changes = {
        "inputs": [data, lambda: load_task("digits")],
        "arch": lambda: network(5),
        "steps": 3,
    }
    a, b = given_experts([module, str(file)], changes)
    assert changes == {"steps": 3}
    assert (a.task.name, b.task.name) == ("TensorDataset", "digits")
    assert check([module, file], inputs="digits", arch="mlp").problems == []


def test_data_stands_beside_the_one_network_of_a_recipe(tmp_path: Path) -> None:
    file = tmp_path / "a.pt"
    torch.save(network(1).state_dict(), file)
    for thing in (network(1), str(file)):
        changes = {"inputs": load_task("digits"), "arch": "mlp", "steps": 3}
        expert = given_expert(thing, changes)
        assert changes == {"steps": 3}
        assert expert.task is not None
        assert len(expert.inputs) == len(expert.task.train.inputs)
    changes = {"inputs": 60, "manifold": "digits", "arch": "mlp"}  # a number is the recipe's
    assert given_expert(str(file), changes).task.name == "digits"
    assert changes == {"inputs": 60}
    assert inspect(str(file), inputs="digits", arch="mlp").manifold == "digits"


def test_what_is_no_list_of_networks_is_refused() -> None:
    with pytest.raises(OptionError, match="expected a list of networks, got a Sequential"):
        merge(network(0), network(1))  # type: ignore[arg-type]
    with pytest.raises(TaskError, match="or a callable, got an int"):
        load_task(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "given", "call"),
    [
        (MergeOptions, {"manifold": ("digits", "mnist")}, "manifold=['digits', 'mnist'])"),
        (MergeOptions, {"manifold": "digits"}, "gm.merge([a, b], options, manifold='digits')"),
        (CompareOptions, {"max_inputs": 60}, "gm.compare([a, b], options, max_inputs=60)"),
        (SparsifyOptions, {"manifold": load_task}, "sparsify(network, options, manifold=...)"),
        (ReconfigureOptions, {"arch": "mlp"}, "reconfigure(network, plan, options, arch='mlp')"),
    ],
)
def test_data_among_options_is_refused_with_the_call_that_takes_it(
    options: type[Any], given: dict[str, Any], call: str
) -> None:
    with pytest.raises(OptionError, match="give it beside the options, .*" + re.escape(call)):
        options(**given)


def test_a_module_and_a_state_dict_are_saved(tmp_path: Path) -> None:
    module = network(0)
    for k, thing in enumerate((module, module.state_dict())):
        file = tmp_path / f"{k}.safetensors"
        save_checkpoint(file, thing)
        assert torch.equal(
            Expert.load(file, arch="mlp").weights, Expert.from_module(module).weights
        )

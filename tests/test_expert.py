from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from geomerge import Checkpoint, Expert, Task, load_checkpoint, load_task, save_checkpoint
from geomerge.errors import CheckpointError, OptionError, TaskError
from geomerge.expert_like import as_expert
from geomerge.metrics import KroneckerMetric

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(300, 5, generator=GENERATOR)
Y = (X[:, 0] > 0).long()
STRIPES = Task.from_tensors(X, Y, name="stripes")


def made(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.Dropout(), nn.BatchNorm1d(8), nn.Linear(8, 2))


def digits_network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))


def test_a_module_is_copied_and_never_changed() -> None:
    module = made().train()
    module[0].weight.requires_grad_(False)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    expert = Expert.from_module(module, STRIPES).with_sketch(inputs=50)
    expert.accuracy()
    expert.network.gradient(expert.weights + 1, X, lambda logits: logits.sum())
    assert module.training
    assert [p.requires_grad for p in module.parameters()] == [False, *[True] * 5]
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    with torch.no_grad():
        module[0].weight.add_(1)
    assert torch.equal(expert.module().state_dict()["0.weight"], before["0.weight"])


def test_modules_of_an_expert_are_new_and_trainable() -> None:
    expert = Expert.from_module(made(), STRIPES)
    one, two = expert.module(), expert.module()
    expected = two(X)
    one.train()
    loss = nn.functional.cross_entropy(one(X), Y)
    loss.backward()
    torch.optim.SGD(one.parameters(), 1.0).step()
    expert.network.logits(expert.weights * 0, X)  # the network's own module is somewhere else now
    assert torch.equal(two(X), expected)
    assert not torch.equal(one.eval()(X), expected)
    assert torch.equal(expert.network.logits(expert.weights, X), expected.detach())


def test_accuracy_is_that_of_the_module() -> None:
    module = made().eval()
    expert = Expert.from_module(module, STRIPES)
    for split in ("train", "select", "test"):
        part = getattr(STRIPES, split)
        right = module(part.inputs.raw).argmax(dim=1) == part.labels
        assert expert.accuracy(split) == pytest.approx(float(right.float().mean()))
    other = Task.from_tensors(X, 1 - Y, name="other")
    assert expert.accuracy("train") + expert.accuracy("train", other) == pytest.approx(1)


@pytest.mark.parametrize(
    ("given", "count"),
    [
        (True, 200),
        (False, None),
        (X, 300),
        (STRIPES.test.inputs, 50),
        (DataLoader(TensorDataset(X, Y), 70), 300),
        ([X[:7], X[7:20]], 20),
    ],
)
def test_inputs_are_taken_in_every_form(given: object, count: int | None) -> None:
    expert = Expert.from_module(made(), STRIPES, inputs=given)  # type: ignore[arg-type]
    assert (None if expert.inputs is None else len(expert.inputs)) == count


def test_outputs_are_found_by_a_function() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = made()

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"x": x, "y": self.body(x)}

    module = Wrapped().eval()
    expert = Expert.from_module(module, STRIPES, logits=lambda output: output["y"])
    assert torch.equal(expert.network.logits(expert.weights, X), module(X)["y"].detach())
    with pytest.raises(CheckpointError, match="`logits`"):
        Expert.from_module(module, STRIPES)


def test_a_file_holds_all_that_an_expert_is(tmp_path: Path) -> None:
    task = load_task("digits")
    expert = Expert.from_module(digits_network(), task, name="a").with_sketch(inputs=100)
    expert.save(tmp_path / "a.safetensors")
    again = Expert.load(tmp_path / "a.safetensors", arch=digits_network)
    assert torch.equal(again.weights, expert.weights)
    assert again.task is not None
    assert again.task.name == "digits"
    assert again.accuracy() == expert.accuracy()
    assert again.sketch is not None
    assert again.sketch.meta == expert.sketch.meta
    assert isinstance(again.sketch.metric, KroneckerMetric)
    assert (again.meta["task"], again.source) == ("digits", str(tmp_path / "a.safetensors"))
    assert again.digest == load_checkpoint(tmp_path / "a.safetensors").digest
    assert repr(again).startswith("<Expert")
    assert Expert.load(tmp_path / "a.safetensors", arch=digits_network, sketch=False).sketch is None


def test_data_that_cannot_be_had_is_noted_and_what_was_asked_for_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.pt"
    save_checkpoint(file, Checkpoint(digits_network().state_dict(), {"task": "nowhere.npz"}))
    expert = Expert.load(file, arch=digits_network, name="a")
    assert (expert.task, expert.inputs, expert.task_name) == (None, None, "nowhere.npz")
    assert any("a is not measured" in note for note in expert.notes)
    with pytest.raises(TaskError, match=r"nowhere\.npz"):
        Expert.load(file, "nowhere.npz", digits_network)
    with pytest.raises(TaskError, match="`task`"):
        expert.accuracy()
    with pytest.raises(TaskError, match="`inputs`"):
        expert.with_sketch()
    with pytest.raises(OptionError, match="did you mean 'test'"):
        expert.accuracy("tests")


def test_a_merged_network_is_seen_by_the_task_s_own_outputs() -> None:
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Flatten(), nn.Linear(64, 20))
    tasks = {
        "digits": {"outputs": [0, 10], "offset": 0},
        "digits-permuted": {"outputs": [10, 20], "offset": 0},
    }
    checkpoint = Checkpoint(wide.state_dict(), {"head": {"protocol": "separate", "tasks": tasks}})
    expert = Expert.from_checkpoint(checkpoint, lambda: wide)
    x = load_task("digits").test.inputs.batch(slice(0, 9))
    for name, block in (("digits", slice(0, 10)), ("digits-permuted", slice(10, 20))):
        seen = expert.with_task(load_task(name))
        assert torch.equal(seen.network.logits(seen.weights, x), wide(x)[:, block].detach())
    shifted = {**tasks["digits-permuted"], "outputs": None, "offset": 10}
    meta = {"head": {"protocol": "offset", "tasks": {"digits-permuted": shifted}}}
    seen = Expert.from_checkpoint(Checkpoint(wide.state_dict(), meta), lambda: wide).with_task(
        load_task("digits-permuted")
    )
    assert seen.task is not None
    assert seen.task.classes == 20
    assert int(seen.task.test.labels.min()) == 10


def test_a_network_that_does_not_take_the_task_is_refused() -> None:
    with pytest.raises(TaskError, match="takes 5 numbers, and digits has inputs of shape"):
        Expert.from_module(made(), load_task("digits"))
    pairs = Task.from_tensors((X, X), Y, name="pairs")
    with pytest.raises(TaskError, match=r"takes one input \(input\) and pairs has 2"):
        Expert.from_module(made(), pairs)


def test_sketches_of_another_output_are_left_out() -> None:
    expert = Expert.from_module(made(), STRIPES, name="a").with_sketch(inputs=50)
    assert expert.for_output("hellinger") is expert
    other = expert.for_output("logits")
    assert other.sketch is None
    assert "is not used: it measures hellinger, not logits" in other.notes[-1]


def test_a_sketch_of_nameless_inputs_names_no_task() -> None:
    sketch = Expert.from_module(made(), inputs=X).with_sketch().sketch
    assert sketch is not None
    assert Expert.from_module(made(), sketch=sketch).task_name is None
    named = Expert.from_module(made(), STRIPES).with_sketch().sketch
    assert Expert.from_module(made(), sketch=named).task_name == STRIPES.name


def test_everything_that_stands_for_a_network_becomes_an_expert(tmp_path: Path) -> None:
    module = digits_network()
    file = tmp_path / "a.safetensors"
    save_checkpoint(file, Checkpoint(module.state_dict(), {"architecture": "mlp"}))
    expert = Expert.from_module(module, name="own")
    assert as_expert(expert, "a") is expert
    for thing in (module, file, str(file), load_checkpoint(file)):
        found = as_expert(thing, "a")
        assert found.name == "a"
        assert torch.equal(found.weights, expert.weights)
    with pytest.raises(OptionError, match="got an int"):
        as_expert(3)  # type: ignore[arg-type]


def test_double_precision_takes_the_inputs_of_a_task() -> None:
    task = load_task("digits")
    expert = Expert.from_module(digits_network().double(), task)
    assert expert.weights.dtype == torch.float64
    assert expert.inputs is not None
    assert expert.inputs.batch(slice(0, 2)).dtype == torch.float64
    single = Expert.from_module(digits_network(), task)
    assert expert.accuracy() == pytest.approx(single.accuracy(), abs=0.01)
    assert expert.with_inputs(X.new_zeros(3, 1, 8, 8)).inputs.dtype == torch.float64
    assert task.train.inputs.dtype == torch.float32


def test_half_precision_is_computed_in_single_precision() -> None:
    module = made().half()
    expert = Expert.from_module(module, STRIPES)
    assert expert.weights.dtype == torch.float32
    assert expert.network.logits(expert.weights, X).dtype == torch.float32
    assert next(module.parameters()).dtype == torch.float16


def test_buffers_outside_of_the_state_dict_are_constants(tmp_path: Path) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(5, 2)
            self.register_buffer("scale", torch.full((5,), 3.0), persistent=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(x * self.scale)

    module = Scaled().eval()
    expert = Expert.from_module(module, STRIPES)
    assert expert.network.n == 12
    assert torch.equal(expert.module()(X), module(X))
    expert.save(tmp_path / "a.pt")
    again = Expert.load(tmp_path / "a.pt", STRIPES, Scaled)
    assert torch.equal(again.module()(X), module(X))

"""Containers of weights: whatever training loops write is read as the network in it."""

from __future__ import annotations

import argparse
import pickle
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import geomerge as gm
from geomerge.errors import CheckpointError, CheckpointWarning
from geomerge.merging.check import check_merge
from geomerge.networks.architectures import create_network, rebuild_network, recognise

# Bare state dicts of stacks leave their activation open, which other tests are about.
pytestmark = pytest.mark.filterwarnings("ignore::geomerge.errors.AssumptionWarning")

State = dict[str, Tensor]
ONE = torch.ones(1)


def make() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))


@pytest.fixture
def state() -> State:
    return make().state_dict()


def assert_same(found: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    assert found.keys() == state.keys()
    for name, value in state.items():
        torch.testing.assert_close(found[name], value.to(found[name].dtype), rtol=0, atol=1e-3)


@pytest.mark.parametrize("ending", ["ckpt", "bin", "pth.tar", "th", "PT", "safetensors", "x.y", ""])
@pytest.mark.parametrize("form", ["archive", "old", "safetensors", "pickle", "arrays"])
def test_the_content_tells_the_format(tmp_path: Path, state: State, ending: str, form: str) -> None:
    file = tmp_path / f"a.{ending}"
    if form == "safetensors":
        save_file(state, file)
    elif form == "pickle":
        file.write_bytes(pickle.dumps(state))
    elif form == "arrays":
        with open(file, "wb") as stream:
            np.savez(stream, **{name: value.numpy() for name, value in state.items()})
    else:
        torch.save(state, file, _use_new_zipfile_serialization=form == "archive")
    assert_same(gm.load_checkpoint(file).weights, state)


class Config(dict[str, Any]):
    """A dictionary of a class of its own, as configurations are."""


def training_state(state: State, loss: Any = ONE) -> dict[str, Any]:
    net = make()
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(2, 6)).sum().backward()
    optimizer.step()
    return {
        "epoch": 3,
        "best_acc": np.float64(0.5),
        "args": argparse.Namespace(lr=0.1, out=Path("runs")),
        "config": Config(depth=3),
        "optimizer": optimizer.state_dict(),
        "rng_state": torch.get_rng_state(),
        "history": defaultdict(list, loss=[np.float32(1.0)]),
        "loss": loss,
        "shape": torch.Size([3]),
        "dtype": torch.float16,
        "when": {1, 2},
    }


CONTAINERS: dict[str, Callable[[State], Any]] = {
    **{
        key: lambda s, key=key: {key: s, **training_state(s)}
        for key in ("state_dict", "net", "weights", "params", "generator", "my_best_model")
    },
    "an average of a parallel module": lambda s: {
        "state_dict_ema": {f"module.{k}": v for k, v in s.items()},
        "epoch": 3,
    },
    "two keys": lambda s: {"checkpoint": {"model": s}, **training_state(s)},
    "three keys": lambda s: {"state": {"run": {"net": s}}},
    "beside the tensors": lambda s: {**s, **training_state(s, loss=0.5)},
    "a tuple": lambda s: (7, s),
    "averaged": lambda s: torch.optim.swa_utils.AveragedModel(make()).state_dict(),
    "compiled": lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
    "parallel": lambda s: {f"module.{k}": v for k, v in s.items()},
    "compiled and parallel": lambda s: {f"module._orig_mod.{k}": v for k, v in s.items()},
    "a part compiled": lambda s: {k.replace(".", "._orig_mod.", 1): v for k, v in s.items()},
    "parameters": lambda s: {k: nn.Parameter(v) for k, v in s.items()},
    "double": lambda s: {k: v.double() for k, v in s.items()},
    "half": lambda s: {k: v.half() for k, v in s.items()},
    "arrays": lambda s: {k: v.numpy() for k, v in s.items()},
    "arrays by column": lambda s: {k: np.asfortranarray(v.numpy()) for k, v in s.items()},
    "big-endian arrays": lambda s: {k: v.numpy().astype(">f8") for k, v in s.items()},
    "a dictionary of its own": lambda s: {"model": Config(s)},
    "an ordered one of pairs": lambda s: OrderedDict([*s.items()]),
    "views of one tensor": lambda s: {k: torch.stack([v, v + 1])[0] for k, v in s.items()},
}


@pytest.mark.parametrize("case", CONTAINERS)
def test_the_state_dict_is_found(tmp_path: Path, state: State, case: str) -> None:
    content = CONTAINERS[case](state)
    torch.save(content, tmp_path / "a.pt")
    torch.save(content, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("a.pt", "old.pt"):
        assert_same(gm.load_checkpoint(tmp_path / name).weights, state)


def test_a_run_is_a_network() -> None:
    run = Path(__file__).parent.parent / "fixtures" / "runs-0.1" / "merge"
    stored = gm.load_checkpoint(run / "merged.safetensors")
    found = gm.load_checkpoint(run)
    assert_same(found.weights, stored.weights)


def test_what_stands_beside_the_weights_is_never_run(tmp_path: Path, state: State) -> None:
    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "hit",)

    torch.save({"model": state, "args": Attack()}, tmp_path / "a.pt")
    assert_same(gm.load_checkpoint(tmp_path / "a.pt").weights, state)
    assert not (tmp_path / "hit").exists()


def test_a_choice_is_said_and_can_be_made(tmp_path: Path, state: State) -> None:
    file = tmp_path / "a.pt"
    zeros = {k: 0 * v for k, v in state.items()}
    torch.save({"model_ema": zeros, "model": state, "optimizer": {"x": torch.ones(3)}}, file)
    with pytest.warns(CheckpointWarning, match="under 'model', which were taken, and under 'model"):
        found = gm.load_checkpoint(file)
    assert_same(found.weights, state)
    assert "weights_key" in found.notes[0]
    for key, wanted in (("model", state), ("model_ema", zeros)):
        assert_same(gm.load_checkpoint(file, weights_key=key).weights, wanted)
        module = gm.from_pretrained(file, arch=make, weights_key=key)
        assert_same(module.state_dict(), wanted)
    with pytest.raises(CheckpointError, match="which are 'model_ema' and 'model', got 'ema'"):
        gm.load_checkpoint(file, weights_key="ema")


def test_parts_of_a_network_are_joined_on_demand(tmp_path: Path, state: State) -> None:
    file = tmp_path / "a.pt"
    whole = nn.Sequential(OrderedDict(encoder=nn.Linear(4, 5), head=nn.Linear(5, 3)))
    parts = {name: part.state_dict() for name, part in whole.named_children()}
    torch.save({"net": parts, "epoch": 3}, file)
    with pytest.warns(CheckpointWarning, match=r"or net.encoder,net.head where these are parts"):
        gm.load_checkpoint(file)
    for key in ("net.encoder,net.head", "encoder, head"):
        assert_same(gm.load_checkpoint(file, weights_key=key).weights, whole.state_dict())


def test_tensors_without_names_are_said(tmp_path: Path, state: State) -> None:
    torch.save({"decay": 0.9, "shadow_params": list(state.values())}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="without names under 'shadow_params'"):
        gm.load_checkpoint(tmp_path / "a.pt")


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 3)
        self.head = nn.Linear(3, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embed(x).mean(1))


class Inside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = make()
        self.register_buffer("scale", torch.full((6,), 2.0), persistent=False)
        self.register_buffer("order", torch.arange(6))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x[:, self.order] * self.scale)


def norm() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))


def weight_norm() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 4)), nn.Linear(4, 3))


def without(*ends: str) -> Callable[[State], State]:
    return lambda s: {k: v for k, v in s.items() if not k.endswith(ends)}


def prefixed(prefix: str) -> Callable[[State], State]:
    return lambda s: {f"{prefix}{k}": v for k, v in s.items()}


def earlier_weight_norm(state: State) -> State:
    names = {"0.parametrizations.weight.original0": "0.weight_g"}
    names["0.parametrizations.weight.original1"] = "0.weight_v"
    return {names.get(k, k): v for k, v in state.items()}


FITS: dict[str, tuple[Callable[[], nn.Module], Callable[[State], State]]] = {
    "no counters": (norm, without("num_batches_tracked")),
    "counters of operations": (make, lambda s: {**s, "total_ops": ONE, "1.total_params": ONE}),
    "a counter too many": (make, lambda s: {**s, "2.num_batches_tracked": torch.tensor(3)}),
    "the second name of a tie left out": (Tied, without("head.weight")),
    "the first name of a tie left out": (Tied, without("embed.weight")),
    "a buffer of the module's own": (Inside, without("order")),
    "a buffer that was persistent before": (Inside, lambda s: {**s, "scale": 2 * torch.ones(6)}),
    "a prefix less": (Inside, lambda s: {k.removeprefix("net."): v for k, v in s.items()}),
    "a prefix more": (norm, prefixed("model.")),
    "two prefixes more": (Inside, prefixed("model.student.")),
    "another prefix": (Inside, lambda s: {k.replace("net.", "backbone."): v for k, v in s.items()}),
    "earlier names of weight_norm": (weight_norm, earlier_weight_norm),
    "double precision": (norm, lambda s: {k: v.double() for k, v in s.items()}),
}  # fmt: skip


@pytest.mark.parametrize("case", FITS)
def test_what_the_module_would_take_fits(case: str) -> None:
    factory, change = FITS[case]
    torch.manual_seed(1)
    module = factory().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1)
    found = rebuild_network(change(module.state_dict()), factory, "a.pt")
    x = torch.randint(0, 7, (4, 5)) if factory is Tied else torch.randn(4, 6)
    assert torch.equal(found(x), module(x))


def test_counters_and_prefixes_hide_no_known_architecture() -> None:
    weights = create_network("resnet18-cifar", (3, 32, 32), 10, seed=0).state_dict()
    bare = without("num_batches_tracked")(weights)
    assert recognise(bare) == "resnet18-cifar"
    found = rebuild_network(prefixed("model.")(bare), None, "a.ckpt")
    assert torch.equal(found.conv1.weight, weights["conv1.weight"])


@pytest.mark.parametrize("prefixes", [("_orig_mod.", ""), ("", "model."), ("net.", "model.")])
def test_a_prefix_is_no_other_architecture(
    tmp_path: Path, state: State, prefixes: tuple[str, str]
) -> None:
    for name, prefix in zip("ab", prefixes, strict=True):
        torch.save(prefixed(prefix)(state), tmp_path / f"{name}.pt")
    x = np.random.default_rng(0).random((60, 6), dtype=np.float32)
    np.savez(tmp_path / "d.npz", x=x, y=np.arange(60) % 3)
    found = check_merge(
        [tmp_path / "a.pt", tmp_path / "b.pt"], {"manifold": (str(tmp_path / "d.npz"),)}
    )
    assert found.problems == []


def test_tensors_without_a_place_are_named_at_once_and_left_out_on_demand(
    tmp_path: Path, state: State
) -> None:
    file = tmp_path / "a.pt"
    torch.save({**state, "aux.weight": torch.ones(2, 2), "aux.bias": torch.ones(2)}, file)
    with pytest.raises(CheckpointError, match=r"2 tensors .* 'aux\.weight', 'aux\.bias'.* aux\.\*"):
        gm.from_pretrained(file, arch=make)
    assert_same(gm.from_pretrained(file, arch=make, leave_out=["aux.*"]).state_dict(), state)
    with pytest.raises(CheckpointError, match=r"names 'axu\.\*', and .* has no such tensor"):
        gm.load_checkpoint(file, leave_out=["axu.*"])


def test_copies_among_the_names_are_left_out_by_one_pattern(state: State) -> None:
    copies = {f"ema_{k.replace('.', '_')}": v for k, v in state.items()}  # as mmengine names them
    with pytest.raises(CheckpointError, match=r"leave them out with `leave_out` ema_\*$"):
        rebuild_network({**state, **copies}, make, "a.pth")
    more = {"5.weight": ONE, "5.bias": ONE, "11.bias": ONE}
    with pytest.raises(CheckpointError, match=r"`leave_out` 5\.weight and 5\.bias and 11\.bias$"):
        rebuild_network({**state, **more}, make, "a.pth")


def test_one_difference_is_said_once(tmp_path: Path, state: State) -> None:
    torch.save(state, tmp_path / "a.pt")
    deeper = nn.Sequential(*make(), nn.ReLU(), nn.Linear(3, 2)).state_dict()
    torch.save(deeper, tmp_path / "b.pt")
    found = check_merge([tmp_path / "a.pt", tmp_path / "b.pt"], {"manifold": ("digits",)})
    assert len([p for p in found.problems if "b.pt" in p and "heads" in p]) == 0
    with pytest.raises(CheckpointError, match=r"has 2 tensors that the architecture make has not"):
        rebuild_network({**state, "5.weight": torch.ones(2, 3), "5.bias": torch.ones(2)}, make, "b")

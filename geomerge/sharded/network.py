"""Networks whose weights are held in shards, by FSDP2 (``fully_shard``) of torch.

Each process holds equal runs of rows of every tensor. A layer's weights are whole only while it
computes. Layers that are each network's own, such as heads, lie beside each other in one module.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard

from geomerge.errors import CheckpointError, GeomergeError, TaskError, first_line
from geomerge.networks.batches import Batch, batch_size, concat, pass_to
from geomerge.networks.outputs import logits_in
from geomerge.processes import Team, of_group
from geomerge.sharded.forms import Form, LookupForm, NormForm, ProductForm, form_of

__all__ = ["OwnLayers", "ShardedNetwork", "parameters_without_memory", "rows_of", "with_own_layers"]


@contextmanager
def parameters_without_memory() -> Iterator[None]:
    """Have modules that are made in the context hold parameters of torch's meta device.

    Their buffers, such as the numbers of positions, are on the CPU as always.
    """
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, value: nn.Parameter | None) -> None:
        if value is not None and value.device.type != "meta":
            value = nn.Parameter(value.detach().to("meta"), value.requires_grad)
        register(module, name, value)

    nn.Module.register_parameter = on_meta  # type: ignore
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


class OwnLayers(nn.Module):
    """Layers of several networks in one place, of which one computes.

    Args:
        layers: Layer of each network.

    Attributes:
        active: Number of the network that computes.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.of = nn.ModuleList(layers)
        self.active = 0

    def forward(self, x: Tensor) -> Any:
        """Return the output of the layer of the network that computes."""
        return self.of[self.active](x)


def with_own_layers(
    module: nn.Module, shapes: Mapping[str, Sequence[tuple[int, int]]]
) -> nn.Module:
    """Replace linear layers of a module by one for each network.

    Args:
        module: Module, which is changed.
        shapes: Numbers of outputs and inputs of each network's layer, by the layer's name.
    """
    for path, sizes in shapes.items():
        layer: Any = module.get_submodule(path)
        bias = layer.bias is not None
        with parameters_without_memory():
            made = [nn.Linear(d_in, d_out, bias, dtype=layer.weight.dtype) for d_out, d_in in sizes]
        owner, _, name = path.rpartition(".")
        setattr(module.get_submodule(owner), name, OwnLayers(made))
    return module


def rows_of(size: int, rank: int, count: int) -> tuple[int, int]:
    """Return the first row of a process's shard, and the one after its last.

    Args:
        size: Number of rows of the tensor.
        rank: Number of the process.
        count: Number of processes.
    """
    each = -(-size // count)
    return min(rank * each, size), min((rank + 1) * each, size)


class ShardedNetwork:
    """A deterministic network for classification with sharded weights.

    Args:
        module: Module whose parameters are on the meta device; it is changed.
        mates: Processes that hold a shard each.

    Attributes:
        module: The sharded module, in evaluation mode.
        mates: Processes that hold a shard each.
        mesh: The same processes, for torch.
        shapes: Whole shape of each parameter, by name.
        forms: Uses of weights that have a metric; :meth:`probe` removes those without inputs.
        static: Paths of the modules whose outputs are one for all inputs.

    Raises:
        CheckpointError: If the module has weights that cannot be sharded.
    """

    def __init__(self, module: nn.Module, mates: Team) -> None:
        _check(module)
        self.mates = mates
        self.shapes = {name: p.shape for name, p in module.named_parameters()}
        found = (form_of(path, one) for path, one in module.named_modules())
        self.forms: list[Form] = [form for form in found if form is not None]
        self.static: frozenset[str] = frozenset()
        self.mesh = DeviceMesh.from_group(mates.group, "cpu")
        self.module = _sharded(module, self.mesh).eval().requires_grad_(False)
        self._own = [one for one in self.module.modules() if isinstance(one, OwnLayers)]
        self._parameters: dict[str, Any] = dict(self.module.named_parameters())

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        found: torch.dtype = next(iter(self._parameters.values())).dtype
        return found

    @property
    def nbytes(self) -> int:
        """Bytes of this process's shards."""
        return sum(self.shard(name).nbytes for name in self.shapes)

    def shard(self, name: str) -> Tensor:  # (r, ...)
        """Return this process's rows of a parameter, as they are held."""
        local: Tensor = self._parameters[name].to_local()
        return local.detach()

    def whole(self, name: str) -> DTensor:
        """Return a parameter as torch's distributed tensor, of the same memory."""
        found: DTensor = self._parameters[name].detach()
        return found

    def placed(self, name: str, shard: Tensor) -> DTensor:
        """Return a distributed tensor of a parameter's shape, of this process's rows."""
        shape = self.shapes[name]
        stride = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(
            shard, self.mesh, [Shard(0)], run_check=False, shape=shape, stride=stride
        )

    def gradient(self, name: str) -> Tensor:  # (r, ...)
        """Return this process's rows of a parameter's gradient, zero where it has none."""
        found = self._parameters[name].grad
        return torch.zeros_like(self.shard(name)) if found is None else found.to_local()

    def rows(self, name: str) -> tuple[int, int]:
        """Return the first row of this process's shard, and the one after its last."""
        return rows_of(self.shapes[name][0], self.mates.rank, self.mates.size)

    def fill(self, rows: Callable[[str, int, int], Tensor | None]) -> None:
        """Set this process's shards.

        Args:
            rows: Function of a parameter's name and two numbers of rows that returns the rows from
                the first to before the second, or None to leave the shard as it is.
        """
        for name in self.shapes:
            found = rows(name, *self.rows(name))
            if found is not None:
                self.shard(name).copy_(found)

    def use(self, number: int) -> None:
        """Compute with the own layers of a network."""
        for one in self._own:
            one.active = number

    def logits(self, x: Batch) -> Tensor:  # (B, m)
        """Return the logits of a batch; all processes must call this at once.

        Raises:
            CheckpointError: If there is not one row of logits for each input.
        """
        logits = logits_in(pass_to(self.module, x))
        if logits.dim() != 2 or len(logits) != batch_size(x):
            raise CheckpointError(
                "expected a network with one row of logits for each input, got outputs of shape "
                f"{tuple(logits.shape)}; language models are merged in one process"
            )
        return logits

    @contextmanager
    def trainable(self, names: Collection[str]) -> Iterator[None]:
        """Compute gradients of parameters in the context, and free them after it."""
        for name in names:
            self._parameters[name].requires_grad_(True)
        try:
            with torch.enable_grad():
                yield
        finally:
            for name in names:
                self._parameters[name].requires_grad_(False)
                self._parameters[name].grad = None

    def probe(self, samples: Sequence[tuple[str, Batch]]) -> list[str]:
        """Keep the forms of modules that compute with one row or map for each input.

        Args:
            samples: Name of the task and one input of each network, in order.

        Returns:
            Names of all other parameters, whose metric is not known.

        Raises:
            TaskError: If the network does not take an input.
        """
        sizes: dict[str, set[tuple[int, int]]] = {form.path: set() for form in self.forms}
        passed = [0]

        def seen(path: str) -> Callable[[nn.Module, Any, Tensor], None]:
            return lambda _module, _x, out: sizes[path].add((passed[0], len(out)))

        handles = [
            self.module.get_submodule(path).register_forward_hook(seen(path)) for path in sizes
        ]
        try:
            for number, (task, x) in enumerate(samples):
                self.use(number)
                for batch in (x, concat([x, x])):
                    passed[0] = batch_size(batch)
                    self._try(task, batch)
        finally:
            for handle in handles:
                handle.remove()
        every, one = {(1, 1), (2, 2)}, {(1, 1), (2, 1)}
        fixed = {f.path for f in self.forms if isinstance(f, LookupForm) and sizes[f.path] == one}
        self.static = frozenset(fixed)
        self.forms = [f for f in self.forms if sizes[f.path] == every or f.path in fixed]
        known = {name for form in self.forms for name in form.names}
        return [name for name in self.shapes if name not in known]

    def _try(self, task: str, x: Batch) -> None:
        """Pass inputs of a task, which all processes have alike."""
        try:
            with torch.no_grad():
                self.logits(x)
        except GeomergeError:
            raise
        except Exception as error:  # a network's code raises errors of any type
            if of_group(error):
                raise
            raise TaskError(
                f"the networks do not take the inputs of {task} ({first_line(error)}); name the "
                "task that each was fine-tuned for"
            ) from error

    @property
    def products(self) -> list[ProductForm]:
        """Forms of layers with Kronecker factors."""
        return [form for form in self.forms if isinstance(form, ProductForm)]

    @property
    def diagonals(self) -> list[str]:
        """Names of the parameters with a diagonal."""
        kinds = (NormForm, LookupForm)
        return [name for form in self.forms if isinstance(form, kinds) for name in form.names]


def _check(module: nn.Module) -> None:
    """Refuse modules with weights that cannot be sharded."""
    tied = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    once = {name for name, _ in module.named_parameters()}
    shared = next((name for name in tied if name not in once), None)
    if shared is not None:
        raise CheckpointError(
            f"{shared} is tied to another weight, expected a network without tied weights; merge "
            "it without shards"
        )
    stored = set(module.state_dict())
    moving = next(
        (k for k, b in module.named_buffers() if b.is_floating_point() and k in stored), None
    )
    if moving is not None:
        raise CheckpointError(
            f"{moving} is a statistic of inputs, expected a network without such buffers; merge it "
            "without shards"
        )
    single = next((name for name, p in module.named_parameters() if p.dim() == 0), None)
    if single is not None:
        raise CheckpointError(
            f"{single} is a single number, which torch cannot shard; merge it without shards"
        )


def _sharded(module: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Shard each repeated block, each embedding and the rest of a module, and allocate shards."""
    blocks: list[nn.Module] = []
    inside: set[nn.Module] = set()
    for one in module.modules():
        if one in inside:
            continue
        if isinstance(one, nn.Embedding):
            blocks.append(one)
        elif isinstance(one, nn.ModuleList):
            blocks += [block for block in one if any(True for _ in block.parameters())]
            inside.update(one.modules())
    for block in blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    fully_shard(module, mesh=mesh, reshard_after_forward=True)
    module._apply(lambda t: torch.zeros_like(t, device="cpu") if t.device.type == "meta" else t)
    return module

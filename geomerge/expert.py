"""Experts: a trained network together with its weights, its task, its inputs and its sketch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from geomerge.data import (
    ExampleOptions,
    Inputs,
    Normalisation,
    Task,
    TextEncoder,
    as_they_are,
    fit_inputs,
    is_text_file,
    load_encoded_task,
    load_task,
    recorded_normalisation,
)
from geomerge.data.collect import collect_inputs
from geomerge.errors import (
    CheckpointError,
    GeomergeError,
    OptionError,
    TaskError,
    did_you_mean,
    first_line,
)
from geomerge.evaluation.measures import loss_of, score
from geomerge.io import paged
from geomerge.io.checkpoint import Checkpoint, save_checkpoint
from geomerge.io.precision import stored_dtype, with_dtype
from geomerge.metrics import Sketch, load_sketch, make_sketch
from geomerge.metrics.sketch import SKETCH_FILE, UNNAMED, restore_sketch, weights_digest
from geomerge.networks.architectures import (
    assumption,
    factory_name,
    identify,
    plain_name,
    rebuild_network,
)
from geomerge.networks.batches import Batch, as_batch, batch_size
from geomerge.networks.hugging_face import (
    load_network,
    load_tokenizer,
    model_folder,
    predicted_by,
    recorded_architecture,
)
from geomerge.networks.network import Network
from geomerge.networks.wrappers import mark_merged, plain_module

__all__ = ["Expert", "folder_sketch", "text_encoder"]

_KINDS = (torch.bool, torch.uint8, torch.int32, torch.int64, torch.float32, torch.float64)
SPLITS = ("train", "select", "test")
_LOGITS = 2**24  # of a language model at once: 64 MiB in float32
# True: those of the task's training split. Batches hold labels or not.
InputsLike: TypeAlias = "bool | Inputs | Batch | Mapping[str, Tensor] | Iterable[Any]"


@dataclass(frozen=True, eq=False, repr=False)
class Expert:
    """Trained network, the argument and the result of every recipe of geomerge.

    Attributes:
        name: Name in options and results, such as ``"a"``; empty until a recipe gives one.
        network: Network with the outputs of its task: all of them, or a block of its own.
        weights: Weight vector, shape (n,).
        task: Task with labels, for choices and reports; None if unknown or not available.
        inputs: Unlabelled inputs that a walk may use; None without any.
        sketch: Sketch of the network on its own task; None without one.
        source: Name of the file or class that the network came from, for messages.
        meta: Facts that are stored with the network: ``architecture``, ``task``,
            ``normalisation``, ``training``, ``head``.
        digest: SHA-256 of the file, or of the weights if the network never was a file.
        warnings: Sentences about assumptions made to rebuild the network.
        notes: Sentences about missing data.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import geomerge as gm
        >>> module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> a = gm.Expert.from_module(module, gm.load_task("digits"), name="a")
        >>> a.network.n, a.task.name, len(a.inputs)
        (650, 'digits', 1199)
        >>> 0 <= a.accuracy() <= 1
        True
        >>> a.module() is a.module()  # a new module each time, safe to train
        False
    """

    name: str
    network: Network
    weights: Tensor
    task: Task | None = None
    inputs: Inputs | None = None
    sketch: Sketch | None = None
    source: str = "network"
    meta: dict[str, Any] = field(default_factory=dict)
    digest: str = ""
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def from_module(
        cls,
        module: nn.Module,
        task: Task | str | None = None,
        *,
        name: str = "",
        inputs: InputsLike = True,
        logits: Callable[[Any], Tensor] | None = None,
        sketch: Sketch | None = None,
        device: str = "cpu",
    ) -> Expert:
        """Make an expert of a module, which stays as it is.

        Args:
            module: The trained network, copied.
            task: Task that it was trained for, or its name; None without labelled data.
            name: Name in options and results.
            inputs: Inputs that a walk may use: a tensor, a tuple or mapping of tensors, or an
                iterable of batches such as a ``DataLoader``, whose labels are ignored. True takes
                those of the task's training split, False none.
            logits: Function of the module's output that returns the logits, shape (B, m); None
                finds them in a tensor, an attribute ``logits``, a mapping or a tuple.
            sketch: Sketch of the network on its task.
            device: Device of the copy.

        Raises:
            GeomergeError: If the network does not take the task's inputs.
        """
        network = Network(module, device, logits)
        plain = plain_module(module)
        made = cls(
            name, network, network.initial, sketch=sketch, source=type(plain).__qualname__,
            meta=with_dtype({}, stored_dtype(plain.state_dict())),
            digest=weights_digest(network, network.initial),
        )  # fmt: skip
        return made.with_data(task, inputs)

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: Checkpoint,
        arch: str | Callable[[], nn.Module] | None = None,
        *,
        name: str = "",
        sketch: bool = True,
        device: str = "cpu",
    ) -> Expert:
        """Rebuild the network of a checkpoint, without data.

        Args:
            checkpoint: Weights and what is known about them.
            arch: Architecture, as in :meth:`load`.
            name: Name in options and results.
            sketch: Whether the sketch in the checkpoint is restored.
            device: Device of the network.

        Raises:
            CheckpointError: If the weights fit no known architecture, or the sketch is of others.
        """
        architecture = arch or recorded_architecture(checkpoint.meta)
        assumed = None if architecture else assumption(checkpoint.weights, checkpoint.source)
        module = rebuild_network(checkpoint.weights, architecture, checkpoint.source)
        paged.give_back()  # the module holds copies
        network = Network(module, device)
        del module  # before the sketch is read
        paged.give_back()
        meta = dict(checkpoint.meta)
        known = factory_name(architecture) if callable(architecture) else architecture
        notes: tuple[str, ...] = ()
        if known is not None:
            recorded, meta["architecture"] = meta.get("architecture"), plain_name(known)
            if recorded is not None and plain_name(recorded) != meta["architecture"]:
                notes = (
                    f"{Path(checkpoint.source).name} records a {recorded}, and was taken "
                    f"for a {known} as `arch` says",
                )
        made = cls(
            name, network, network.initial, source=checkpoint.source, meta=meta,
            digest=checkpoint.digest or weights_digest(network, network.initial),
            warnings=() if assumed is None else (assumed,), notes=notes,
        )  # fmt: skip
        if sketch and checkpoint.sketch:
            restored = restore_sketch(
                checkpoint.sketch, meta.get("sketch", {}), network, made.weights, made.source
            )
            made = replace(made, sketch=restored)
        elif sketch and (file := folder_sketch(checkpoint.source)) is not None:
            made = replace(made, sketch=load_sketch(file, network, made.weights))
        return made

    @classmethod
    def load(
        cls,
        path: str | Path,
        task: Task | str | None = None,
        arch: str | Callable[[], nn.Module] | None = None,
        *,
        name: str = "",
        inputs: InputsLike = True,
        sketch: bool = True,
        device: str = "cpu",
    ) -> Expert:
        """Read a network's file and the data of its task.

        Args:
            path: A ``.pt``, ``.pth`` or ``.safetensors`` file, or a model folder of Hugging Face.
            task: Task that the network was trained for, or its name; None takes the recorded one,
                if its data is available.
            arch: Architecture where the file does not record it: a name, ``module:factory``, or a
                callable that returns the module.
            name: Name in options and results.
            inputs: Inputs that a walk may use, as in :meth:`from_module`.
            sketch: Whether the sketch in the file is restored.
            device: Device of the network.

        Raises:
            GeomergeError: If the file cannot be read or the network does not take the inputs.
        """
        checkpoint = load_network(path)
        made = cls.from_checkpoint(checkpoint, arch, name=name, sketch=sketch, device=device)
        return made.with_data(task, inputs)

    @property
    def folder(self) -> Path | None:
        """Hugging Face folder that the network was read from; None if it was none."""
        return model_folder(self.source) if self.source else None

    @property
    def task_name(self) -> str | None:
        """Name of the task that the network is for: of its data, its file or its sketch."""
        if self.task is not None:
            return self.task.name
        sketched = self.sketch.meta.get("task") if self.sketch else None
        return self.meta.get("task") or (None if sketched == UNNAMED else sketched)

    @cached_property
    def architecture(self) -> str | None:
        """Name of the architecture: as stated, else that of a known network of equal outputs.

        None where the network can only be rebuilt by a callable of its own.
        """
        stated = self.meta.get("architecture")
        if stated is not None:
            return str(stated)
        inputs = self.inputs or (self.task.train.inputs if self.task is not None else None)
        x = None if inputs is None else inputs.batch(slice(0, 2))
        return identify(self.network.head_view(slice(None)), self.weights, x)

    @property
    def checkpoint(self) -> Checkpoint:
        """The network as a checkpoint, with its sketch: a copy of the weights."""
        meta = dict(self.meta)
        if self.architecture is not None:
            meta["architecture"] = self.architecture
        if self.task is not None and not {"task", "tasks"} & meta.keys():
            meta |= {"task": self.task.name, "normalisation": self.task.normalisation.to_json()}
        if self.sketch is not None:
            meta["sketch"] = self.sketch.meta
        tensors = self.sketch.tensors() if self.sketch else {}
        weights = self.network.state_dict(self.weights)
        return Checkpoint(weights, meta, tensors, self.source, self.digest)

    def with_precision(self, precision: str) -> Expert:
        """Return the expert with passes for derivatives and for targets in a precision.

        One such pass is tried, if there are inputs.

        Args:
            precision: ``"float32"`` or ``"bfloat16"``.

        Raises:
            OptionError: If weights, device or code of the network allow no such passes.
        """
        network = self.network.with_precision(precision)
        inputs = self.inputs or (self.task.train.inputs if self.task is not None else None)
        if precision != "float32" and inputs is not None:
            x = inputs.batch(slice(0, 2))
            try:
                network.gradient(self.weights, x, lambda logits: logits.square().mean())
            except Exception as error:  # a network's code raises errors of any type
                raise OptionError(
                    f"`precision` {precision} expected a network whose code computes in it, got "
                    f"{first_line(error)!r}; leave `precision` at float32"
                ) from error
        return replace(self, network=network)

    def module(self) -> nn.Module:
        """Return a new module with these weights and all outputs, which can be trained."""
        module = self.network.module_at(self.weights)
        if "merged" in self.meta:
            mark_merged(module)
        return module

    def accuracy(self, split: str = "test", task: Task | None = None) -> float:
        """Return the share of a split that is labelled correctly, in [0, 1].

        Args:
            split: ``"train"``, ``"select"`` or ``"test"``.
            task: Another task than the expert's own.

        Raises:
            TaskError: If there is no task, it is measured by loss, or the network does not take its
                inputs.
            OptionError: If there is no such split.
        """
        return self._measured(split, task, "accuracy")

    def loss(self, split: str = "test", task: Task | None = None) -> float:
        """Return the mean cross-entropy of a language model per token of a split, in nats.

        The perplexity is its exponential.

        Args:
            split: ``"train"``, ``"select"`` or ``"test"``.
            task: Another task than the expert's own.

        Raises:
            TaskError: If there is no task, it is measured by accuracy, or the network does not take
                its inputs.
            OptionError: If there is no such split.
        """
        return loss_of(self._measured(split, task, "loss"))

    def score(self, split: str = "test", task: Task | None = None) -> float:
        """Return what networks are ranked by, in [0, 1]: accuracy, or the inverse of a perplexity.

        Args:
            split: ``"train"``, ``"select"`` or ``"test"``.
            task: Another task than the expert's own.

        Raises:
            TaskError: If there is no task, or the network does not take its inputs.
            OptionError: If there is no such split.
        """
        return self._measured(split, task, None)

    def _measured(self, split: str, task: Task | None, measure: str | None) -> float:
        """Return the score on a split of a task that must have a measure, if one is given."""
        if split not in SPLITS:
            raise OptionError(f"unknown split {split!r}{did_you_mean(split, SPLITS)}")
        measured = self if task is None else self.with_task(task)
        if measured.task is None:
            raise TaskError(
                f"{self.source} has no task to measure the {measure or 'score'} on; give one with "
                "`task`"
            )
        own = measured.task.measure
        if measure not in (None, own):
            raise TaskError(
                f"{measured.task.name} is measured by {own}, expected a task with {measure}; ask "
                f"for its {own}"
            )
        return score(measured.network, measured.weights, getattr(measured.task, split))

    def load_task(
        self,
        name: str,
        normalisation: Normalisation | None = None,
        data_root: str | None = None,
        download: bool = False,
        files: ExampleOptions | None = None,
    ) -> Task:
        """Load a task, normalised as given or as this network was trained.

        Args:
            name: Name of the task, as :func:`~geomerge.data.load_task` takes it; of a model folder
                also a ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet`` table of texts, and of a
                language model's a ``.txt`` file, which its own tokenizer reads.
            normalisation: Normalisation instead of the recorded or usual one.
            data_root: Folder of the named data sets.
            download: Whether torchvision may fetch a missing data set.
            files: Columns of tables, size and channels of images.

        Raises:
            TaskError: If the data cannot be had.
        """
        if is_text_file(name) and self.folder is not None:
            encoder = text_encoder(self.folder, self.meta.get("config", {}))
            return load_encoded_task(Path(name), encoder, files, str(self.network.device))
        sketched = dict(self.sketch.meta) if self.sketch else {}
        return load_task(
            name,
            data_root=data_root,
            download=download,
            normalisation=normalisation
            or recorded_normalisation(self.meta, name)
            or recorded_normalisation(sketched, name),
            device=str(self.network.device),
            files=files,
        )

    def with_task(self, task: Task) -> Expert:
        """Return the expert with a task, of whose classes it uses the outputs.

        Args:
            task: The task; of a merged network with a block of outputs for each task, that block
                is used, and where classes were renumbered, they are.

        Raises:
            TaskError: If the network does not take the task's inputs.
        """
        columns, offset = self._place(task.name)
        network = self.network if columns is None else self.network.head_view(columns)
        network = network.with_constants({**network.constants, **self._constants(task.name)})
        if self.weights.dtype == torch.float64:
            task = task.of_dtype(torch.float64)
        shifted = task.shifted(offset) if offset else task
        classes, splits = shifted.classes, (shifted.train, shifted.select, shifted.test)
        least = max(0, min(int(split.labels.min()) for split in splits))
        shifted = shifted.fitted(
            lambda x: network.check_inputs(self.weights, x, classes, task.name, least)
        )
        if shifted.measure == "loss":
            shifted = shifted.in_parts(_at_once(network, self.weights, shifted.train.inputs))
        return replace(self, network=network, task=shifted)

    def with_inputs(self, inputs: Inputs | Batch | Mapping[str, Tensor] | Iterable[Any]) -> Expert:
        """Return the expert with inputs that a walk may use.

        Args:
            inputs: Inputs: a tensor, a tuple or mapping of tensors, or an iterable of batches,
                whose labels are ignored.

        Raises:
            TaskError: If the network does not take them.
        """
        if not isinstance(inputs, Inputs):
            whole = as_batch(inputs) if isinstance(inputs, (Tensor, tuple, Mapping)) else None
            batch = collect_inputs(inputs, "`inputs`") if whole is None else whole
            inputs = as_they_are(batch, self.network.device)
        if self.weights.dtype == torch.float64:
            inputs = inputs.of_dtype(torch.float64)
        name = inputs.name or "`inputs`"
        found = fit_inputs(inputs, lambda x: self.network.check_inputs(self.weights, x, 0, name))
        at_once = _at_once(self.network, self.weights, found)
        return replace(self, inputs=replace(found, at_once=at_once) if at_once else found)

    def with_sketch(
        self, *, inputs: int = 10_000, output: str = "hellinger", seed: int = 0
    ) -> Expert:
        """Return the expert with a sketch measured on its own inputs.

        Args:
            inputs: Number of inputs that are used, at most.
            output: Output whose change the sketch measures, one of
                :data:`~geomerge.metrics.outputs.OUTPUTS`.
            seed: Seed of the choice of inputs.

        Raises:
            TaskError: If the expert has no inputs.
        """
        own = self.inputs or (self.task.train.inputs if self.task else None)
        if own is None:
            raise TaskError(
                f"{self.source} has no inputs to measure a sketch on; give a `task` or `inputs`"
            )
        network = self.network.with_precision("float32")
        measured = make_sketch(
            network, self.weights, own, own.name or self.task_name or UNNAMED,
            output=output, count=inputs, seed=seed,
        )  # fmt: skip
        return replace(self, sketch=measured)

    def for_output(self, output: str) -> Expert:
        """Return the expert without its sketch where that measures another output.

        Args:
            output: Output whose change is to be measured.
        """
        if self.sketch is None or self.sketch.measures(output):
            return self
        note = (
            f"the sketch in {Path(self.source).name} is not used: it measures "
            f"{self.sketch.meta.get('output')}, not {output}"
        )
        return replace(self, sketch=None, notes=(*self.notes, note))

    def save(self, path: str | Path) -> None:
        """Write the network, its metadata and its sketch to one file.

        Args:
            path: A ``.safetensors``, ``.pt`` or ``.pth`` file, replaced in one step.

        Raises:
            RunError: If the place cannot be written.
        """
        save_checkpoint(path, self.checkpoint)

    def __repr__(self) -> str:
        parts = [f"{self.network.n:,} weights"]
        if self.task_name is not None:
            parts.append(f"task {self.task_name}" + ("" if self.task else " without data"))
        parts.append(f"{len(self.inputs):,} inputs" if self.inputs is not None else "no inputs")
        if self.sketch is not None:
            parts.append("a sketch")
        return f"<Expert {self.name or self.source}: {', '.join(parts)}>"

    def _place(self, task: str) -> tuple[slice | None, int]:
        """Return the block of outputs of a task in a merged network, and its first class."""
        known = self.meta.get("head", {}).get("tasks", {}).get(task)
        if known is None:
            return None, 0
        columns = slice(*known["outputs"]) if known["outputs"] else slice(None)
        return columns, known["offset"]

    def _constants(self, task: str) -> dict[str, Tensor]:
        """Return the buffers that a merged network has for a task alone.

        Raises:
            CheckpointError: If what is recorded are no buffers of the network.
        """
        block = self.meta.get("head", {}).get("tasks", {}).get(task) or {}
        kinds = {str(kind): kind for kind in _KINDS}
        buffers = {name for name, _ in self.network.module.named_buffers()}
        found = {}
        try:
            for name, kept in block.get("constants", {}).items():
                values = torch.tensor(kept["values"], dtype=kinds[kept["dtype"]])
                found[name] = values.reshape(kept["shape"])
            if not found.keys() <= buffers:
                raise ValueError("no such buffer")
        except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
            raise CheckpointError(
                f"the buffers that {self.source} records for {task} are not those of the network "
                f"({first_line(error)}); write the file again"
            ) from error
        return found

    def with_data(self, task: Task | str | None = None, inputs: InputsLike = True) -> Expert:
        """Return the expert with a task and with inputs that a walk may use.

        Args:
            task: Task, or its name; None takes the recorded one, if its data is available.
            inputs: Inputs that a walk may use, as in :meth:`from_module`.

        Raises:
            GeomergeError: If the network does not take them.
        """
        made = self
        if isinstance(task, str):
            made = made.with_task(made.load_task(task))
        elif task is not None:
            made = made.with_task(task)
        elif made.task_name is not None:
            try:
                made = made.with_task(made.load_task(made.task_name))
            except GeomergeError as error:
                note = f"{made.name or made.source} is not measured: {error}"
                made = replace(made, notes=(*made.notes, note))
        if isinstance(inputs, bool):
            own = made.task.train.inputs if inputs and made.task is not None else None
            return replace(made, inputs=own)
        return made.with_inputs(inputs)


def _at_once(
    network: Network,
    w: Tensor,  # (n,)
    inputs: Inputs,
) -> int | None:
    """Return how many texts of a language model to pass at once; None for other networks."""
    few = inputs.batch(slice(0, 1))
    logits = network.logits(w, few)
    if len(logits) == batch_size(few):
        return None
    return max(1, _LOGITS * batch_size(few) // logits.numel())


def folder_sketch(source: str) -> Path | None:
    """Return the sketch that lies in a model folder; None where there is none."""
    folder = model_folder(source)
    file = None if folder is None else folder / SKETCH_FILE
    return file if file is not None and file.is_file() else None


def text_encoder(folder: Path, config: Mapping[str, Any]) -> TextEncoder:
    """Return the encoder of texts as tokens and class numbers for a model folder.

    Args:
        folder: Folder with the tokenizer.
        config: Content of its ``config.json``.

    Raises:
        CheckpointError: If the folder has no tokenizer.
    """
    tokenizer = load_tokenizer(folder)
    lengths = [getattr(tokenizer, "model_max_length", None), config.get("max_position_embeddings")]
    length = min([n for n in lengths if isinstance(n, int) and n > 0], default=0)
    named = config.get("id2label")
    classes = {str(label): int(k) for k, label in named.items()} if named else None
    usual = TextEncoder(tokenizer, classes=classes, predicts=predicted_by(config))
    return replace(usual, max_length=length) if 0 < length < 10**6 else usual

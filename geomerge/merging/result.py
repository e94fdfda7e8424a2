"""Result of a merge: merged network, path, picked stages, and their display in notebooks."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from geomerge.errors import OptionError, did_you_mean
from geomerge.evaluation.measures import worded
from geomerge.evaluation.pick import PickRule
from geomerge.expert import Expert
from geomerge.io.checkpoint import Checkpoint, save_checkpoint
from geomerge.io.files import cannot_write, write_bytes
from geomerge.io.precision import HALVES, rounded, with_dtype
from geomerge.merging.options import MergeOptions
from geomerge.merging.presets.base import Preset
from geomerge.merging.relax import LegRelaxed
from geomerge.merging.stages import Candidate, PickedStage
from geomerge.networks.wrappers import mark_merged
from geomerge.notebook import Curve, card, drawing, sentences, table
from geomerge.options import recorded
from geomerge.paths.path import WeightPath
from geomerge.weight_space import WeightSpace

__all__ = ["MergeResult"]


@dataclass(frozen=True, eq=False, repr=False)
class MergeResult:
    """Merged network with the path on which it was picked.

    Attributes:
        preset: Preset that walked.
        rule: Rule by which points were picked.
        stages: Walks with their picks, in order.
        path: Path from the first network to the last.
        t: Place of the crossover on the path.
        relaxed: Effect of relaxing each leg; empty if the path was not relaxed.
    """

    preset: Preset
    rule: PickRule
    stages: list[PickedStage]
    path: WeightPath
    t: float
    relaxed: list[LegRelaxed] = field(default_factory=list)

    @property
    def options(self) -> MergeOptions:
        """Options of the merge, with a metric that fits the memory."""
        return self.preset.options

    @cached_property
    def space(self) -> WeightSpace:
        """The networks that were merged, with the sketches that the merge made of them.

        Their passes are in float32, whatever the precision of the merge.
        """
        return self.preset.prepared.known_space.with_precision("float32")

    @property
    def notes(self) -> list[str]:
        """Sentences about what was assumed, chosen or left out."""
        return self.preset.prepared.notes

    @property
    def dtype(self) -> str | None:
        """Type in which the merged network is written; None is float32."""
        given = {expert.meta.get("dtype") for expert in self.space}
        return self.options.machine.dtype or (given.pop() if len(given) == 1 else None)

    @cached_property
    def w(self) -> Tensor:  # (n,)
        """Weights of the crossover, as its file holds them."""
        return rounded(self.path.at(self.t), self.dtype)

    @property
    def picked(self) -> Candidate:
        """The candidate that the crossover was picked from."""
        return self.stages[-1].chosen

    @property
    def diagonal_only(self) -> tuple[str, ...]:
        """Tensors of which the metric holds only the diagonal."""
        return self.stages[-1].walked.diagonal_only

    @property
    def accuracies(self) -> dict[str, float | None]:
        """Score of the crossover on each network's selection split, None without a task.

        It is an accuracy; of a language model the inverse of its perplexity.
        """
        known = dict(self.picked.score.accuracy)
        if self.dtype in HALVES:  # the picked point was measured before it was rounded
            known |= {e.name: self.expert_for(e.name).score("select") for e in self.space if e.task}
        return {expert.name: known[expert.name] for expert in self.space if expert.name in known}

    @cached_property
    def expert(self) -> Expert:
        """The merged network, with all outputs."""
        whole = self.space.network.head_view(slice(None))
        found = replace(
            self.path.expert(self.t),
            name="merged", network=whole, weights=self.w, source="merged network",
        )  # fmt: skip
        own = {one.name: getattr(found, one.name) for one in fields(found)}
        return _MergedExpert(**own, of=self.expert_for)

    @property
    def merged(self) -> Expert:
        """The merged network, by its earlier name."""
        _warn_renamed("merged", "expert")
        return self.expert

    def expert_for(self, name: str) -> Expert:
        """Return the merged network with the outputs of a task, and the task's data.

        Args:
            name: Name of one of the networks, of its task, or of its file.

        Raises:
            OptionError: If there is none of the name.
        """
        own = self._named(name)
        return replace(
            self.expert, name=own.name, network=own.network, task=own.task, inputs=own.inputs
        )

    def module(self, name: str | None = None) -> nn.Module:
        """Return the merged network as a new module in evaluation mode, which can be trained.

        Args:
            name: Name of one of the networks, of its task or of its file, whose own outputs alone
                are wanted; None returns all outputs. In a shared head the two are the same.

        Raises:
            OptionError: If there is none of the name.
        """
        module = self.expert.module()
        mark_merged(module)
        heads = self.preset.prepared.heads
        if name is None or heads.layer is None:
            return module
        expert = self._named(name)
        own = expert.name
        for buffer, value in expert.network.constants.items():
            owner, _, last = buffer.rpartition(".")
            module.get_submodule(owner).register_buffer(last, value.clone())
        for name in heads.layers:
            rows, columns = heads.place(name, own)
            if name == heads.layer and heads.protocol == "separate":
                rows = heads.columns[own]
            layer = module.get_submodule(name)
            assert isinstance(layer, nn.Linear), "heads are linear layers"
            layer.weight = nn.Parameter(layer.weight.detach()[rows, columns].clone())
            if layer.bias is not None:
                layer.bias = nn.Parameter(layer.bias.detach()[rows].clone())
            layer.out_features, layer.in_features = layer.weight.shape
        return module

    def checkpoint(self) -> Checkpoint:
        """Return the crossover network, ready to save."""
        found = self.path.checkpoint(self.t)
        return replace(found, meta=with_dtype(found.meta, self.dtype))

    def save(self, folder: str | Path) -> None:
        """Write the merged network, the path and a summary to a folder.

        The folder holds ``merged.safetensors``, ``path`` and ``README.md``;
        :func:`~geomerge.pretrained.from_pretrained` reads it. The command line writes more: a
        report, a page, a certificate.

        Args:
            folder: Folder, which is made if it does not exist.

        Raises:
            RunError: If the folder cannot be written.
        """
        folder = Path(folder)
        meta = {"preset": self.preset.name, "crossover": {"t": self.t, "pick": self.rule.name}}
        named = self.checkpoint()
        named = replace(named, meta={**named.meta, "merged": {"recipe": self._recipe, **meta}})
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.path.copy_to(folder / "path")
            save_checkpoint(folder / "merged.safetensors", named)
            write_bytes(folder / "README.md", self._summary().encode())
        except OSError as error:
            raise cannot_write(folder, error) from error

    @property
    def _recipe(self) -> dict[str, Any]:
        """Options and inputs, as the recipe of a run has them."""
        inputs = {expert.name: expert.digest for expert in self.space}
        return {"merge": recorded(self.options), "inputs": inputs}

    def _named(self, name: str) -> Expert:
        for expert in self.space:
            if name == expert.name or (expert.task is not None and name == expert.task.name):
                return expert
        named = [expert for expert in self.space if Path(expert.source).stem == name]
        if len(named) == 1:
            return named[0]
        known = [expert.name for expert in self.space]
        raise OptionError(f"no network {name!r} was merged{did_you_mean(name, known)}")

    def _summary(self) -> str:
        """Return a summary in Markdown."""
        rows = [
            f"| {e.name} | {e.source} | {e.task.name if e.task else 'not known'} | "
            f"{_worded(e, self.accuracies.get(e.name))} |"
            for e in self.space
        ]
        return "\n".join(
            [
                f"# Merge of {' and '.join(e.source for e in self.space)}",
                "",
                f"Preset {self.preset.name}, crossover at t = {self.t:.4g}, picked by "
                f"{self.rule.name}; {self.space.head} head.",
                "",
                "| network | from | task | merged network (selection split) |",
                "|---|---|---|---:|",
                *rows,
                "",
                *(f"- note: {note}" for note in self.notes),
            ]
        )

    def __repr__(self) -> str:
        known = self.accuracies
        told = [e for e in self.space if e.name in known]
        shares = ", ".join(f"{e.name} {_worded(e, known[e.name])}" for e in told)
        notes = "".join(f"; note: {note}" for note in self.notes)
        return (
            f"<MergeResult of {', '.join(self.accuracies)} ({self.preset.name}): crossover at t = "
            f"{self.t:.4g}, picked by {self.rule.name}; on the selection splits {shares}{notes}>"
        )

    def _repr_html_(self) -> str:
        chosen = self.picked
        networks = [
            [e.name, e.task.name if e.task else "not known", _worded(e, self.accuracies[e.name])]
            for e in self.space
        ]
        walks = [
            [f"{c.damping:g}", f"{c.length:.4g}", f"{c.value:.4f}", "taken" if c is chosen else ""]
            for c in self.stages[-1].candidates
        ]
        parts = [
            table(("network", "task", "crossover (selection split)"), networks),
            _walk(chosen),
            table(("damping", "length up to the pick", f"value ({self.rule.name})", ""), walks),
        ]
        return card(
            f"{self.preset.name} merge: crossover at t = {self.t:.4g}, picked by {self.rule.name}",
            *parts,
            sentences([f"Note: {note}" for note in self.notes]),
        )


@dataclass(frozen=True, eq=False, repr=False)
class _MergedExpert(Expert):
    """Merged network, which can still be called: :meth:`MergeResult.expert_for` was ``expert``."""

    of: Callable[[str], Expert] | None = None

    def __call__(self, name: str) -> Expert:
        assert self.of is not None
        _warn_renamed("expert(name)", "expert_for(name)")
        return self.of(name)


def _warn_renamed(old: str, new: str) -> None:
    message = f"MergeResult.{old} is MergeResult.{new} now; the old name works in this version only"
    warnings.warn(message, DeprecationWarning, stacklevel=3)


def _worded(expert: Expert, score: float | None) -> str:
    if score is None or expert.task is None:
        return "not measured"
    return worded(score, expert.task.measure, 2)


def _walk(chosen: Candidate) -> str:
    """Draw the accuracies along the chosen walk, as measured for the pick."""
    total = max((record.length for record in chosen.steps), default=0.0)
    if not total:
        return ""
    at = {0: 0.0, **{record.step: record.length / total for record in chosen.steps}}
    curves = []
    for name in sorted(chosen.score.accuracy):
        seen = [(at[step], score.accuracy[name]) for step, score in chosen.seen.items()]
        points = [(x, y) for x, y in seen if y is not None]
        if points:
            curves.append(Curve(f"score on the task of {name} (selection)", points))
    where = ("picked", at[chosen.step])
    return drawing(curves, "share of the walk's length", "score", mark=where) if curves else ""

"""LoRA adapters of peft: reading them as whole models with their base, and writing them.

This is the only module that imports ``peft``, an optional dependency. Nothing is downloaded: the
base is a local model folder.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from geomerge.errors import CheckpointError, RunError, first_line
from geomerge.io.containers import safetensors_header
from geomerge.io.files import cannot_write

__all__ = ["ADAPTER", "ADAPTER_WEIGHTS", "AdapterFolder", "save_adapter"]

ADAPTER = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_HEADS = ("classifier", "score")
_STEMS = ("ForMaskedLM", "ForCausalLM", "LMHeadModel", "ForSequenceClassification", "Model")
_ENDINGS = {"SEQ_CLS": "ForSequenceClassification", "CAUSAL_LM": "ForCausalLM"}


@dataclass(frozen=True)
class AdapterFolder:
    """Folder of a LoRA adapter.

    Attributes:
        folder: Path of the folder.
        config: Content of ``adapter_config.json``.
    """

    folder: Path
    config: dict[str, Any]

    def base(self, given: Path | None) -> Path:
        """Return the folder of the base, the given or else the recorded one.

        Args:
            given: Folder of the base; None takes the recorded one.

        Raises:
            CheckpointError: If the adapter is not of type LoRA, or the base is not a local folder.
        """
        kind, recorded = self.config.get("peft_type"), self.config.get("base_model_name_or_path")
        if kind != "LORA":
            raise CheckpointError(
                f"{self.folder} is an adapter of type {str(kind)[:40]!r}, expected LORA; merge it "
                "into its base with peft and name that folder"
            )
        if given is not None:
            return given
        named = str(recorded or "")
        for place in (Path(named), self.folder.parent / named, self.folder / named):
            if named and (place / "config.json").is_file():
                return place
        raise CheckpointError(
            f"{self.folder} is a LoRA adapter of {named[:80] or 'an unnamed base'!r}, which is not "
            "a folder here; name its base's folder with `base`"
        )

    def architecture(self, config: dict[str, Any]) -> dict[str, Any]:
        """Return the configuration of the whole model, the base with the adapter's head.

        Args:
            config: Content of the base's ``config.json``.

        Raises:
            CheckpointError: If the adapter's weights are missing or damaged.
        """
        shapes = self._shapes()
        ending = _ENDINGS.get(str(self.config.get("task_type")))
        names = config.get("architectures") or [""]
        made = dict(config)
        if ending is not None and not str(names[0]).endswith(ending):
            stem = next((e for e in _STEMS if str(names[0]).endswith(e)), "")
            made["architectures"] = [str(names[0]).removesuffix(stem) + ending]
        for name, (_, shape) in shapes.items():
            head = len(shape) == 2 and any(name.endswith(f".{head}.weight") for head in _HEADS)
            if head and len(made.get("id2label") or {}) != shape[0]:
                made["id2label"] = {str(k): f"LABEL_{k}" for k in range(shape[0])}
                made["label2id"] = {v: int(k) for k, v in made["id2label"].items()}
        return made

    def brings(self, name: str) -> bool:
        """Return whether the adapter stores a complete tensor of the model, such as its head's."""
        return f"base_model.model.{name}" in self._shapes()

    def applied(self, module: Any) -> Any:
        """Return a base module with the adapter merged into its weights.

        Args:
            module: Base, with the configuration of :meth:`architecture`.

        Raises:
            CheckpointError: If the adapter does not fit the base.
            RunError: If peft is not installed.
        """
        peft = _peft()
        try:
            with warnings.catch_warnings():  # deprecated names in peft and transformers
                warnings.simplefilter("ignore")
                adapted = peft.PeftModel.from_pretrained(
                    module, str(self.folder), local_files_only=True
                )
                return adapted.merge_and_unload()
        except Exception as error:  # peft raises errors of many types
            raise CheckpointError(
                f"the adapter of {self.folder} does not fit its base ({first_line(error)}); name "
                "the base that it was trained on with `base`"
            ) from error

    def _shapes(self) -> dict[str, tuple[str, list[int]]]:
        file = self.folder / ADAPTER_WEIGHTS
        try:
            return safetensors_header(file)[0]
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{self.folder} has no whole {ADAPTER_WEIGHTS} ({first_line(error)}); save the "
                "adapter again, as safetensors"
            ) from error


def save_adapter(
    folder: Path,
    module: nn.Module,
    factors: Mapping[str, tuple[Tensor, Tensor]],
    whole: Mapping[str, nn.Module],
    config: Mapping[str, Any],
) -> None:
    """Write a LoRA adapter for ``PeftModel.from_pretrained``.

    Args:
        folder: Folder, created if necessary.
        module: Base with the outputs of the adapted model; changed in place.
        factors: Factors of each adapted layer's change, by name: up, shape (d_out, r), and down,
            shape (r, d_in).
        whole: Modules that are stored completely, by name in the model.
        config: Content of an ``adapter_config.json`` with the task and the base.

    Raises:
        RunError: If peft is not installed or the folder cannot be written.
    """
    peft = _peft()
    rank = max(len(down) for _, down in factors.values())
    settings = peft.LoraConfig(
        task_type=config.get("task_type"), r=rank, lora_alpha=rank, target_modules=list(factors),
        modules_to_save=list(whole) or None,
        base_model_name_or_path=config.get("base_model_name_or_path"),
    )  # fmt: skip
    with warnings.catch_warnings():  # deprecated names in peft and transformers
        warnings.simplefilter("ignore")
        adapted = peft.get_peft_model(module, settings)
        model = adapted.base_model.model
        for name, (up, down) in factors.items():
            layer = model.get_submodule(name)
            layer.lora_B["default"].weight.data.copy_(up)
            layer.lora_A["default"].weight.data.copy_(down)
        for name, own in whole.items():
            kept = model.get_submodule(name).modules_to_save["default"]
            kept.load_state_dict(own.state_dict())
        adapted.peft_config["default"].base_model_name_or_path = config.get(
            "base_model_name_or_path"
        )
        try:
            adapted.save_pretrained(str(folder), safe_serialization=True)
        except OSError as error:
            raise cannot_write(folder, error) from error


def _peft() -> Any:
    try:
        return importlib.import_module("peft")
    except ImportError as error:
        raise RunError(
            "LoRA adapters need the package peft, which is not installed; install it with "
            "pip install 'geomerge[hf]'"
        ) from error

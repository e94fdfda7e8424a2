"""Hugging Face model folders: reading and writing ``config.json`` and weights.

This is the only module that imports ``transformers``, an optional dependency. Nothing is
downloaded, and no code of a folder is run. Headers of files are validated before they are used.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from geomerge.errors import CheckpointError, RunError, first_line
from geomerge.io import paged
from geomerge.io.checkpoint import Checkpoint, load_checkpoint
from geomerge.io.containers import check_plain, safetensors_header
from geomerge.io.files import (
    cannot_write,
    canonical_json,
    check_regular,
    copy_file,
    file_sha256,
    parse_json,
    plain_file,
    sha256,
)
from geomerge.io.reading import FileOptions, read_network
from geomerge.networks.adapters import ADAPTER, ADAPTER_WEIGHTS, AdapterFolder

__all__ = [
    "CONFIG",
    "ConfiguredModel",
    "adapter_base_module",
    "copy_other_files",
    "load_adapter_base",
    "load_config",
    "load_model_folder",
    "load_network",
    "load_tokenizer",
    "model_folder",
    "network_digest",
    "predicted_by",
    "recorded_architecture",
    "save_model_folder",
    "stored_tensors",
]

CONFIG = "config.json"
_INDEX = ".index.json"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_OTHER_FORMATS = (".gguf", ".onnx", ".h5", ".keras", ".msgpack", ".tflite")
_QUANTISED = ("I8", "U8", "F8", "F4", "F6", "I4", "U4")  # types of tensors, by their beginnings
_ENDINGS = {  # suffixes of class names, and the class that builds the model
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForImageClassification": "AutoModelForImageClassification",
    "ForCausalLM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
    "ForMaskedLM": "AutoModelForMaskedLM",
    "Model": "AutoModel",
}
_WEIGHT_FILES = re.compile(
    r"(adapter_config\.json|.*\.(safetensors|bin|pt|pth|h5|msgpack|onnx|gguf|index\.json))|\..*"
)
_LARGEST = 16 * 2**20  # largest number of bytes of a JSON file other than a vocabulary


def model_folder(path: str | Path) -> Path | None:
    """Return the model folder of a path, which is the folder or one of its files; None if none.

    Args:
        path: Folder, or its file of weights, their index or its ``config.json``.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    own = (CONFIG, ADAPTER)
    if path.is_dir() or path.name in own or path.name.endswith(_INDEX):
        return folder if any((folder / name).is_file() for name in own) else None
    weights = path.name in (*_WEIGHTS, ADAPTER_WEIGHTS) and path.is_file()
    return folder if weights and any((folder / name).is_file() for name in own) else None


def load_network(
    path: str | Path, files: FileOptions | None = None, base: str | Path | None = None
) -> Checkpoint:
    """Read a network from a file, a model folder or a run.

    Args:
        path: File of weights, Hugging Face model folder, or folder of a finished run.
        files: Options of reading a file.
        base: Base of a LoRA adapter; None takes the recorded one.

    Raises:
        GeomergeError: If the network cannot be read.
    """
    folder = model_folder(path)
    if folder is not None:
        return load_model_folder(folder, None if base is None else Path(base))
    path = Path(path)
    if path.name.endswith(_INDEX):
        raise CheckpointError(
            f"{path} is an index of weights without a {CONFIG} beside it; name a whole folder as "
            "transformers writes it"
        )
    return read_network(path, files or FileOptions())


def load_model_folder(folder: Path, base: Path | None = None) -> Checkpoint:
    """Read a model folder.

    Args:
        folder: Folder with ``config.json`` and ``model.safetensors``, shards with an index, or
            ``pytorch_model.bin``; or folder of a LoRA adapter, which is merged into its base.
        base: Folder of an adapter's base; None takes the recorded one, if it is a local folder.

    Returns:
        Checkpoint of the module's state dict in float32, with tied tensors under each of their
        names; ``meta`` holds the ``architecture``, the ``config`` and the ``dtype`` of the stored
        weights.

    Raises:
        CheckpointError: If a file is missing or damaged, or the weights do not fit the model.
        RunError: If transformers is not installed.
    """
    if not (folder / CONFIG).is_file():
        return _load_adapter(folder, base)
    config = load_config(folder)
    files = _weight_files(folder)
    kinds = _plain_types(folder, config, files)
    model = ConfiguredModel(config, str(folder))
    module, info = model.load(folder, files)
    missing = sorted(info["missing_keys"])
    wrong = sorted(map(str, info["mismatched_keys"]))
    if missing or wrong:
        raise CheckpointError(
            f"the weights of {folder} are not those of a {model!r}: "
            + (f"{missing[0]!r} is missing" if missing else f"{wrong[0]} is of another shape")
            + f"; save the model again, or correct {CONFIG}"
        )
    weights = paged.stored(module.state_dict())
    check_plain(weights, folder, masks=True)
    meta: dict[str, Any] = {"architecture": repr(model), "config": config}
    stored = _stored_type(kinds)
    if stored is not None:
        meta["dtype"] = stored
    return Checkpoint(weights, meta, {}, str(folder), network_digest(folder))


@dataclass(frozen=True)
class StoredTensors:
    """Tensors of a model folder, by the headers of its files.

    Attributes:
        files: File of each tensor, by name.
        shapes: Shape of each tensor, by name.
        dtype: Half-precision type of all of them; None for other types.
    """

    files: Mapping[str, Path]
    shapes: Mapping[str, tuple[int, ...]]
    dtype: str | None


def stored_tensors(folder: Path) -> StoredTensors:
    """Return the tensors of a model folder, by the files' headers.

    Args:
        folder: Folder with ``config.json`` and safetensors files.

    Raises:
        CheckpointError: If a file is missing or damaged, or the weights are in another format or
            quantised.
    """
    files = _weight_files(folder)
    if files[0].suffix != ".safetensors":
        raise CheckpointError(
            f"{folder} has its weights in {files[0].name}, expected safetensors files, of which "
            "each process reads its own rows; save the model again with save_pretrained"
        )
    kinds = _plain_types(folder, load_config(folder), files)
    headers = [(file, _checked_header(file)) for file in files]
    return StoredTensors(
        {name: file for file, header in headers for name in header},
        {name: tuple(shape) for _, header in headers for name, (_, shape) in header.items()},
        _stored_type(kinds),
    )


def _load_adapter(folder: Path, base: Path | None) -> Checkpoint:
    """Read a LoRA adapter as a whole model, merged into its base."""
    adapter = AdapterFolder(folder, _read_json(folder / ADAPTER))
    whole = adapter.base(base)
    model, module, info = _base_model(adapter, whole)
    absent = sorted(name for name in info["missing_keys"] if not adapter.brings(name))
    if absent:
        raise CheckpointError(
            f"neither {folder} nor its base {whole} has {absent[0]!r}; save the adapter with that "
            "module among `modules_to_save` of peft"
        )
    weights = adapter.applied(module).state_dict()
    check_plain(weights, folder, masks=True)
    meta = {"architecture": repr(model), "config": dict(model.config)}
    digest = sha256(f"{network_digest(folder)} {network_digest(whole)}".encode())
    return Checkpoint(weights, meta, {}, str(folder), digest)


def _base_model(
    adapter: AdapterFolder, whole: Path
) -> tuple[ConfiguredModel, nn.Module, dict[str, Any]]:
    config, files = load_config(whole), _weight_files(whole)
    _plain_types(whole, config, files)
    model = ConfiguredModel(adapter.architecture(config), str(adapter.folder))
    return model, *model.load(whole, files)


def load_adapter_base(folder: Path, base: Path | None) -> tuple[AdapterFolder, Path]:
    """Return the folder of a LoRA adapter and that of its base.

    Args:
        folder: Folder of the adapter.
        base: Folder of the base; None takes the recorded one, if it is a local folder.

    Raises:
        CheckpointError: If the folder is not an adapter, or its base is not a local folder.
    """
    if not (folder / ADAPTER).is_file() or (folder / CONFIG).is_file():
        raise CheckpointError(
            f"{folder} is a whole model, expected a LoRA adapter; leave `adapter_rank` out"
        )
    adapter = AdapterFolder(folder, _read_json(folder / ADAPTER))
    return adapter, adapter.base(base)


def adapter_base_module(adapter: AdapterFolder, base: Path) -> nn.Module:
    """Return the base of an adapter as a model with the adapter's number of outputs.

    Args:
        adapter: Folder of the adapter.
        base: Folder of its base.
    """
    return _base_model(adapter, base)[1]


def network_digest(path: Path) -> str:
    """Return the SHA-256 of a network's file, or of a model folder's weights and config."""
    folder = model_folder(path)
    if folder is None:
        return file_sha256(path)
    if (folder / CONFIG).is_file():
        files = [folder / CONFIG, *_weight_files(folder)]
    else:
        files = [folder / ADAPTER, folder / ADAPTER_WEIGHTS]
    parts = {file.name: file_sha256(file) for file in files}
    return sha256(canonical_json(parts).encode())


@dataclass(frozen=True)
class ConfiguredModel:
    """Factory of an untrained model of transformers from its configuration.

    Attributes:
        config: Content of ``config.json``.
        source: Name of the configuration's source, for error messages.
    """

    config: Mapping[str, Any]
    source: str = CONFIG

    def __repr__(self) -> str:
        names = self.config.get("architectures") or [self.config.get("model_type", "model")]
        return str(names[0])

    def __call__(self) -> nn.Module:
        """Return the model in float32 with arbitrary weights.

        Raises:
            CheckpointError: If transformers does not have the model.
        """
        auto, made = self._classes()
        with _quiet():
            try:
                module: nn.Module = auto.from_config(
                    made, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False
                )
            except Exception as error:  # transformers raises errors of many types
                raise self._refused(error) from error
        return module

    def load(self, folder: Path, files: list[Path]) -> tuple[nn.Module, dict[str, Any]]:
        """Return the model with a folder's weights, and transformers' report on names.

        Args:
            folder: Folder.
            files: Weight files of the folder. Files in pickle format are never unpickled.

        Raises:
            CheckpointError: If transformers does not have the model or cannot read it.
        """
        auto, made = self._classes()
        settings: dict[str, Any] = {
            "dtype": torch.float32, "attn_implementation": "eager", "trust_remote_code": False,
        }  # fmt: skip
        if files[0].suffix != ".safetensors":
            module = self()
            weights: dict[str, Tensor] = {}
            for file in files:
                weights |= load_checkpoint(file).weights
            return module, _loaded(module, weights)
        with _quiet():
            try:
                module, info = auto.from_pretrained(
                    str(folder), config=made, local_files_only=True, use_safetensors=True,
                    output_loading_info=True, ignore_mismatched_sizes=True, **settings,
                )  # fmt: skip
            except Exception as error:  # transformers raises errors of many types
                raise self._refused(error) from error
        return module.eval(), info

    @property
    def entries(self) -> dict[str, Any]:
        """The configuration with the values of all entries that it leaves out.

        Raises:
            CheckpointError: If transformers does not have the model.
        """
        found: dict[str, Any] = self._classes()[1].to_dict()
        return found

    def _classes(self) -> tuple[Any, Any]:
        """Return the class that builds the model, and the configuration's class."""
        transformers = _transformers()
        kind, names = self.config.get("model_type"), self.config.get("architectures")
        if kind not in transformers.CONFIG_MAPPING:
            raise CheckpointError(
                f"{self.source} is of model type {str(kind)[:40]!r}, expected one that "
                "transformers "
                f"{transformers.__version__} builds itself; code in a folder is never run"
            )
        if not isinstance(names, list) or not names:
            raise CheckpointError(
                f"the {CONFIG} of {self.source} has no architectures, expected the model's class "
                "in "
                "a list, such as BertForSequenceClassification; write it there"
            )
        ending = next((e for e in _ENDINGS if str(names[0]).endswith(e)), None)
        if ending is None:
            raise CheckpointError(
                f"{self.source} is a {str(names[0])[:60]}, expected a model for the classification "
                "of texts or images, or a language model; save it with such a head"
            )
        try:
            made = transformers.CONFIG_MAPPING[kind].from_dict(dict(self.config))
        except Exception as error:  # transformers raises errors of many types
            raise self._refused(error) from error
        return getattr(transformers, _ENDINGS[ending]), made

    def _refused(self, error: Exception) -> CheckpointError:
        return CheckpointError(
            f"transformers cannot make the {self!r} of {self.source} ({first_line(error)}); "
            f"correct {CONFIG}"
        )


def recorded_architecture(meta: Mapping[str, Any]) -> str | ConfiguredModel | None:
    """Return the architecture in a checkpoint's metadata, in a form that can be built."""
    if isinstance(meta.get("config"), dict):
        return ConfiguredModel(meta["config"])
    return meta.get("architecture")


def predicted_by(config: Mapping[str, Any]) -> str:
    """Return the kind of a model's predictions: ``"class"``, ``"next"`` or ``"masked"`` tokens.

    Args:
        config: Content of ``config.json``.
    """
    kind = repr(ConfiguredModel(config))
    if kind.endswith(("ForCausalLM", "LMHeadModel")):
        return "next"
    return "masked" if kind.endswith("ForMaskedLM") else "class"


def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizer of a model folder.

    Args:
        folder: Folder.

    Raises:
        CheckpointError: If there is no readable tokenizer.
        RunError: If transformers is not installed.
    """
    transformers = _transformers()
    with _quiet():
        try:
            found = transformers.AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
            # Without files transformers makes a tokenizer that maps every text to unknown tokens.
            if len(found) <= len(found.all_special_tokens):
                raise ValueError("no vocabulary")
            return found
        except Exception as error:  # transformers raises errors of many types
            raise CheckpointError(
                f"{folder} has no tokenizer that transformers can read ({first_line(error)}); copy "
                "the tokenizer's files into it"
            ) from error


def save_model_folder(
    folder: Path,
    module: nn.Module,
    *,
    like: Path | None,
    dtype: str | None = None,
    max_shard_size: str = "5GB",
) -> None:
    """Write a model of transformers as a folder for ``from_pretrained``.

    Args:
        folder: Folder, created if necessary.
        module: Model; its ``config`` is written as well.
        like: Folder whose other files, such as the tokenizer's, are copied; None copies none.
        dtype: Dtype of the written weights, such as ``"bfloat16"``; None takes the module's.
        max_shard_size: Largest size of a file of weights, such as ``"5GB"``.

    Raises:
        RunError: If the folder cannot be written.
    """
    model: Any = module if dtype is None else module.to(getattr(torch, dtype))
    try:
        with _quiet():
            model.save_pretrained(str(folder), max_shard_size=max_shard_size)
        copy_other_files(like, folder)
    except OSError as error:
        raise cannot_write(folder, error) from error


def copy_other_files(like: Path | None, folder: Path) -> None:
    """Copy all files of a model folder except weights and existing files.

    Args:
        like: Folder whose files are copied, such as the tokenizer's; None copies none.
        folder: Destination folder.

    Raises:
        RunError: If the folder cannot be written.
    """
    for file in sorted(like.iterdir()) if like is not None else ():
        kept = file.is_file() and not _WEIGHT_FILES.fullmatch(file.name)
        if kept and file.name != "README.md" and not (folder / file.name).exists():
            copy_file(file, folder / file.name)


def _transformers() -> Any:
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise RunError(
            "folders of Hugging Face need the package transformers, which is not installed; "
            "install it with pip install 'geomerge[hf]'"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Disable transformers' progress bars, and its warnings on conditions checked here."""
    import warnings

    logging = _transformers().utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def load_config(folder: Path) -> dict[str, Any]:
    """Return the content of a model folder's ``config.json``.

    Raises:
        CheckpointError: If the file is missing or unreadable.
    """
    return _read_json(folder / CONFIG)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        check_regular(file)
        if file.stat().st_size > _LARGEST:
            raise ValueError(f"{file.stat().st_size} bytes")
        content = parse_json(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("no object")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{file} is no readable JSON object ({first_line(error)}); copy it again"
        ) from error
    return content


def _weight_files(folder: Path) -> list[Path]:
    """Return the existing weight files of a folder.

    Raises:
        CheckpointError: If there are none, or a file of the index is missing.
    """
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}{_INDEX}"
        if index.is_file():
            listed = _read_json(index).get("weight_map")
            if not isinstance(listed, dict) or not listed:
                raise CheckpointError(f"{index} lists no weights; copy it again")
            try:
                files = [plain_file(folder, shard) for shard in sorted(set(listed.values()))]
            except (TypeError, ValueError) as error:
                raise CheckpointError(
                    f"{index} is no index of shards in its folder ({first_line(error)}); copy it "
                    "again"
                ) from error
            absent = [file.name for file in files if not file.is_file()]
            if absent:
                raise CheckpointError(
                    f"{index} names {absent[0]}, which is not there"
                    + (f" (nor {len(absent) - 1} more)" if len(absent) > 1 else "")
                    + "; copy all shards into the folder"
                )
            return files
    others = sorted(file.name for file in folder.iterdir() if file.suffix in _OTHER_FORMATS)
    if others:
        raise CheckpointError(
            f"{folder} has its weights as {others[0]} alone, expected model.safetensors, shards "
            "with their index, or pytorch_model.bin; give the PyTorch weights that it was made from"
        )
    raise CheckpointError(
        f"{folder} has a {CONFIG} and no weights, expected model.safetensors, shards with their "
        "index, or pytorch_model.bin; copy them into the folder"
    )


def _plain_types(folder: Path, config: Mapping[str, Any], files: list[Path]) -> set[str]:
    """Return the types of the tensors in a folder's safetensors files, by their headers.

    Raises:
        CheckpointError: If the configuration or a type says that the weights are quantised. Masks
            of 8 bits, which early checkpoints of GPT-2 have as ``attn.bias``, are allowed.
    """
    settings = config.get("quantization_config")
    if settings:
        method = settings.get("quant_method") if isinstance(settings, dict) else None
        raise CheckpointError(
            f"{folder} is quantised ({str(method or 'quantization_config')[:40]}, as its {CONFIG} "
            "says), expected plain weights; give the model that it was made from"
        )
    kinds: set[str] = set()
    for file in files:
        if file.suffix != ".safetensors":
            continue
        for name, (kind, _) in _checked_header(file).items():
            kinds.add(kind)
            if kind.startswith(_QUANTISED) and not (kind == "U8" and name.endswith(".bias")):
                raise CheckpointError(
                    f"{file} has {name[:80]!r} as {kind}, which is quantised, expected float32, "
                    "float16 or bfloat16; give the model that it was made from"
                )
    return kinds


def _checked_header(file: Path) -> dict[str, tuple[str, list[int]]]:
    try:
        return safetensors_header(file)[0]
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{file} is not a whole safetensors file ({first_line(error)}); copy it again"
        ) from error


def _stored_type(kinds: set[str]) -> str | None:
    """Return the half-precision dtype of all floating-point weights; None for other dtypes."""
    floats = kinds & {"F64", "F32", "F16", "BF16"}
    return {"F16": "float16", "BF16": "bfloat16"}.get("".join(floats))


def _loaded(module: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Load weights into a module and report missing names in transformers' form."""
    own = module.state_dict()
    wrong = [k for k, v in weights.items() if k in own and own[k].shape != v.shape]
    fitting = {k: v for k, v in weights.items() if k in own and k not in wrong}
    module.load_state_dict(fitting, strict=False)
    filled = {own[k].data_ptr() for k in fitting}  # tied tensors are stored once
    missing = [k for k, v in own.items() if k not in fitting and v.data_ptr() not in filled]
    module.eval()
    return {"missing_keys": set(missing) - set(wrong), "mismatched_keys": wrong}

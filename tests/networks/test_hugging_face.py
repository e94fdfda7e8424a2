"""Model folders: read as transformers reads them, refused in one sentence, written to be opened."""

from __future__ import annotations

import json
from pathlib import Path

import model_folders
import pytest
import safetensors.torch
import torch
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
)

import geomerge as gm
from geomerge.errors import CheckpointError, RunError
from geomerge.networks.hugging_face import load_network, network_digest, save_model_folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folders.write_base(tmp_path_factory.mktemp("folders") / "base")


@pytest.fixture(scope="module")
def tuned(base: Path) -> Path:
    return model_folders.write_fine_tune(base.parent / "count", base, "count")


def tokens() -> dict[str, torch.Tensor]:
    x = model_folders.tokenizer()(["red cat", "one two three"], padding=True, return_tensors="pt")
    return dict(x)


def theirs(folder: Path) -> torch.Tensor:
    model = AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True)
    with torch.no_grad():
        return model.eval()(**tokens()).logits


def test_a_folder_is_an_expert_with_the_logits_of_transformers(tuned: Path) -> None:
    expert = gm.Expert.load(tuned)
    logits = expert.network.logits(expert.weights, tokens())
    assert torch.allclose(logits, theirs(tuned), atol=1e-6)
    assert expert.meta["architecture"] == "BertForSequenceClassification"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_of_a_folder_stands_for_it(tuned: Path, name: str) -> None:
    assert load_network(tuned / name).digest == load_network(tuned).digest == network_digest(tuned)


def test_shards_give_the_same_weights_as_one_file(tuned: Path, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(tuned)
    model.save_pretrained(tmp_path, max_shard_size="2KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    whole, parts = load_network(tuned).weights, load_network(tmp_path).weights
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
    assert gm.Expert.load(tmp_path / "model.safetensors.index.json").network.n == len(
        gm.Expert.load(tuned).weights
    )


def test_a_missing_shard_is_named(tuned: Path, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(tuned)
    model.save_pretrained(tmp_path, max_shard_size="2KB")
    lost = sorted(tmp_path.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(CheckpointError, match=f"names {lost.name}, which is not there"):
        load_network(tmp_path)


def test_pickled_weights_go_through_the_safe_reader(tuned: Path, tmp_path: Path) -> None:
    weights = load_network(tuned).weights
    (tmp_path / "config.json").write_bytes((tuned / "config.json").read_bytes())
    torch.save(weights, tmp_path / "pytorch_model.bin")
    again = load_network(tmp_path).weights
    assert all(torch.equal(weights[k], again[k]) for k in weights)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02cos\nsystem\n.")
    with pytest.raises(CheckpointError):
        load_network(tmp_path)


def test_tied_weights_stay_tied(base: Path, tmp_path: Path) -> None:
    expert = gm.Expert.load(base)
    module = expert.module()
    assert isinstance(module, BertForMaskedLM)
    table = module.bert.embeddings.word_embeddings.weight
    assert module.cls.predictions.decoder.weight is table
    save_model_folder(tmp_path / "again", module, like=base)
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "again", local_files_only=True)
    assert again.cls.predictions.decoder.weight is again.bert.embeddings.word_embeddings.weight
    assert (tmp_path / "again" / "tokenizer.json").is_file()


def test_buffers_that_are_not_saved_stay_the_modules_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 14,
        "intermediate_size": 8, "bos_token_id": 2, "eos_token_id": 3,
    }  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(**sizes)).eval().bfloat16()
    model.save_pretrained(tmp_path)
    found = load_network(tmp_path)
    assert found.meta["dtype"] == "bfloat16"
    assert not any("inv_freq" in name for name in found.weights)
    module = gm.Expert.load(tmp_path).module()
    x = torch.tensor([[4, 5, 6]])
    with torch.no_grad():
        assert torch.allclose(module(x).logits, model.float()(x).logits, atol=1e-5)


def test_half_precision_is_computed_in_float32_and_written_as_it_was(
    tuned: Path, tmp_path: Path
) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(tuned).to(torch.float16)
    model.save_pretrained(tmp_path / "half")
    expert = gm.Expert.load(tmp_path / "half")
    assert expert.weights.dtype == torch.float32
    dtype = expert.meta["dtype"]
    save_model_folder(tmp_path / "out", expert.module(), like=None, dtype=dtype)
    half, again = (load_network(tmp_path / name) for name in ("half", "out"))
    assert again.meta["dtype"] == "float16"
    assert all(torch.equal(again.weights[k], v) for k, v in half.weights.items())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "no-such-model"}, "code in a folder is never run"),
        ({"architectures": None}, "expected the model's class"),
        ({"architectures": ["BertForQuestionAnswering"]}, "expected a model for the"),
        ({"hidden_size": 16}, "is of another shape"),
        ({"num_hidden_layers": 2}, "is missing"),
    ],
)
def test_a_configuration_of_another_model_is_refused(
    tuned: Path, tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    config = json.loads((tuned / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((tuned / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=said):
        load_network(tmp_path)


def test_an_adapter_without_its_base_says_so(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(CheckpointError, match="is a LoRA adapter of 'an unnamed base'"):
        load_network(tmp_path)


def test_a_folder_without_weights_or_configuration_is_refused(tuned: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no config\.json"):
        load_network(tmp_path)
    (tmp_path / "config.json").write_bytes((tuned / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match="no weights"):
        load_network(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_network(tmp_path)


@pytest.mark.parametrize("name", ["model.gguf", "model.onnx", "tf_model.h5"])
def test_weights_of_another_format_alone_are_named(tuned: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_bytes((tuned / "config.json").read_bytes())
    (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=f"has its weights as {name} alone"):
        load_network(tmp_path)


def test_quantised_weights_are_named(tuned: Path, tmp_path: Path) -> None:
    config = json.loads((tuned / "config.json").read_text())
    weights = safetensors.torch.load_file(tuned / "model.safetensors")
    name = "bert.encoder.layer.0.output.dense.weight"
    weights[name] = weights[name].to(torch.int8)
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=rf"has '{name}' as I8, which is quantised"):
        load_network(tmp_path)
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"is quantised \(gptq, as"):
        load_network(tmp_path)


def test_masks_of_early_gpt2_files_are_not_quantised_weights(tmp_path: Path) -> None:
    folder = model_folders.write_language_model(tmp_path / "gpt2")
    file = folder / "model.safetensors"
    weights = safetensors.torch.load_file(file)
    weights["transformer.h.0.attn.bias"] = torch.ones(1, 1, 12, 12, dtype=torch.uint8).tril()
    safetensors.torch.save_file(weights, file, {"format": "pt"})
    assert load_network(folder).weights["transformer.wte.weight"].shape == (15, 8)


def test_without_transformers_one_sentence_says_how_to_install_it(
    tuned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(gm.errors.RunError, match=r"pip install 'geomerge\[hf\]'"):
        load_network(tuned)

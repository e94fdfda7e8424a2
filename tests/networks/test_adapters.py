"""LoRA adapters read as whole models, held against what peft makes of them."""

from __future__ import annotations

import json
from pathlib import Path

import model_folders
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification

import geomerge as gm
from geomerge.errors import CheckpointError
from geomerge.networks.hugging_face import load_network, network_digest

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of peft itself


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("adapters")
    base = model_folders.write_base(place / "base")
    model_folders.write_adapter(place / "lora", base, classes=3, seed=1)
    return place


def logits(model: torch.nn.Module) -> torch.Tensor:
    x = model_folders.tokenizer()(["red cat", "one two three"], padding=True, return_tensors="pt")
    with torch.no_grad():
        return model.eval()(**x).logits


def test_an_adapter_is_its_base_with_the_differences_added(place: Path) -> None:
    expert = gm.Expert.load(place / "lora")
    start = AutoModelForSequenceClassification.from_pretrained(place / "base", num_labels=3)
    theirs = PeftModel.from_pretrained(start, place / "lora")
    assert torch.allclose(logits(expert.module()), logits(theirs), atol=1e-5)
    assert expert.meta["architecture"] == "BertForSequenceClassification"


def test_the_base_is_the_one_that_is_given_or_recorded(place: Path, tmp_path: Path) -> None:
    for file in (place / "lora").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "somebody/some-bert"
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="adapter of 'somebody/some-bert', which is not a"):
        load_network(tmp_path)
    found = load_network(tmp_path, base=place / "base")
    own = load_network(place / "lora").weights
    assert all(torch.equal(found.weights[k], v) for k, v in own.items())
    assert network_digest(tmp_path) != network_digest(place / "lora")


def test_an_adapter_of_another_base_is_refused(place: Path, tmp_path: Path) -> None:
    wide = model_folders.config(hidden_size=12)
    other = model_folders.write_folder(tmp_path / "other", BertForSequenceClassification(wide))
    with pytest.raises(CheckpointError, match="does not fit its base"):
        load_network(place / "lora", base=other)

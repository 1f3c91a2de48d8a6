"""LoRA adapters: the vectors equal those of the model into which PEFT itself has merged the adapter."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from esmflow.engine.engine import Engine
from esmflow.errors import DataError
from esmflow.model import weights
from esmflow.model.fetch import fetch
from esmflow.model.trunk import Esm
from esmflow.representation import Output
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import EsmConfig, EsmModel, EsmTokenizer

# PEFT asks transformers for what transformers is about to rename.
pytestmark = pytest.mark.filterwarnings("ignore:.*:FutureWarning")

SEQUENCES = ["MKTAYIAKQRQISFVKSHFSRQ", "MKV", "GWALPDRCENHM" * 12]
SETTINGS: dict[str, Mapping[str, object]] = {
    "queries and values": {"target_modules": ["query", "value"]},
    "dense layers by suffix": {
        "target_modules": ["key", "intermediate.dense", "output.dense"],
        "r": 3,
        "lora_alpha": 7,
    },
    "pattern": {"target_modules": r".*layer\.[01]\.attention\.self\.(query|key)"},
    "ranks and alphas of their own": {
        "target_modules": ["query", "value"],
        "rank_pattern": {"layer.1.attention.self.query": 2},
        "alpha_pattern": {"value": 1},
    },
    "rank-stabilised": {"target_modules": ["query", "key", "value"], "use_rslora": True},
}


def base(directory: Path) -> EsmModel:
    """A tiny ESM-2 as transformers saves it."""
    torch.manual_seed(0)
    config = EsmConfig(
        vocab_size=33,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=1026,
        position_embedding_type="rotary",
        token_dropout=True,
        mask_token_id=32,
        pad_token_id=1,
        emb_layer_norm_before=False,
    )
    model = EsmModel(config, add_pooling_layer=False).eval()
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.2)
    model.save_pretrained(directory)
    return EsmModel.from_pretrained(directory, add_pooling_layer=False).eval()


def adapted(directory: Path, settings: Mapping[str, object]) -> None:
    """Save a LoRA adapter of the base model, whose matrices are all other than zero."""
    model = get_peft_model(base(directory / "base"), LoraConfig(**{"r": 4, "lora_alpha": 8} | dict(settings)))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(0, 0.3)
    model.save_pretrained(directory / "adapter")


def peft_means(directory: Path) -> list[np.ndarray]:
    """What the model has that PEFT itself merges: the mean of the last layer over the residues."""
    whole = EsmModel.from_pretrained(directory / "base", add_pooling_layer=False)
    merged = PeftModel.from_pretrained(whole, directory / "adapter").merge_and_unload().eval()
    vocabulary = directory / "vocab.txt"
    vocabulary.write_text(
        "\n".join(["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>"])
    )
    tokenizer = EsmTokenizer(str(vocabulary))
    with torch.no_grad():
        hidden = [merged(**tokenizer(sequence, return_tensors="pt")).last_hidden_state[0] for sequence in SEQUENCES]
    return [states[1:-1].mean(0).numpy() for states in hidden]


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_the_vectors_are_those_of_the_model_that_peft_merges(tmp_path: Path, settings: Mapping[str, object]) -> None:
    adapted(tmp_path, settings)
    plain = fetch("tiny", str(tmp_path / "base"), tmp_path)
    descriptor = fetch("tiny", str(tmp_path / "base"), tmp_path, adapter=tmp_path / "adapter")
    assert descriptor.sha256 != plain.sha256
    mean = Output(3, "mean")
    engine = Engine(Esm(weights.load(descriptor), torch.device("cpu")))
    vectors = engine.embed([sequence.encode() for sequence in SEQUENCES], [mean]).values[mean]
    for vector, expected in zip(vectors, peft_means(tmp_path), strict=True):
        assert np.linalg.norm(vector - expected) <= 1e-5 * np.linalg.norm(expected)


def test_an_adapter_that_changed_since_it_was_fetched_is_refused(tmp_path: Path) -> None:
    adapted(tmp_path, {"target_modules": ["query"]})
    descriptor = fetch("tiny", str(tmp_path / "base"), tmp_path, adapter=tmp_path / "adapter")
    weights.require_unchanged(descriptor)
    adapted(tmp_path, {"target_modules": ["value"]})
    with pytest.raises(DataError, match="weights have changed"):
        weights.require_unchanged(descriptor)


def test_a_directory_without_an_adapter_is_named(tmp_path: Path) -> None:
    base(tmp_path / "base")
    with pytest.raises(DataError, match=r"base: no adapter as PEFT saves it"):
        fetch("tiny", str(tmp_path / "base"), tmp_path, adapter=tmp_path / "base")

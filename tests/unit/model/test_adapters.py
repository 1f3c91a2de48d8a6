"""LoRA adapters: merged, they give the vectors of PEFT's merged model; what cannot be merged is refused by name."""

import json
import os
import shutil
import warnings
from pathlib import Path

import peft
import pytest
import reference
import torch
import transformers
from checkpoints import Vectors, assert_vectors, by_fair_esm, fair_esm_of, old_names, refusal, transformers_esm2
from esmflow.model import weights
from esmflow.planned_model import Descriptor
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

#: What PEFT names the task of a model with that head.
TASKS = {
    "SEQ_CLS": transformers.EsmForSequenceClassification,
    "TOKEN_CLS": transformers.EsmForTokenClassification,
    None: transformers.EsmModel,
}
CONFIGS: dict[str, dict[str, object]] = {
    "queries and values": {"target_modules": ["query", "value"], "task_type": "SEQ_CLS"},
    "every dense layer of a bare model": {"target_modules": "all-linear", "r": 3, "lora_alpha": 7},
    "patterns": {
        "target_modules": ["query", "key", "value", "dense"],
        "rank_pattern": {"layer.1.attention.self.query": 2, r".*key": 6},
        "alpha_pattern": {"value": 1, r"layer\.0\..*\.dense": 32},
        "task_type": "TOKEN_CLS",
    },
    "rsLoRA with biases": {"target_modules": ["query", "dense"], "use_rslora": True, "bias": "all"},
    "biases of its layers": {"target_modules": ["query", "dense"], "bias": "lora_only"},
    "a bias of its own": {"target_modules": ["key", "value"], "lora_bias": True},
    "DoRA": {"target_modules": ["query", "intermediate.dense"], "use_dora": True, "task_type": "SEQ_CLS"},
    "a pattern": {"target_modules": r".*layer\.[02]\..*(query|output\.dense)"},
    "some layers": {"target_modules": ["query", "dense"], "layers_to_transform": [0, 2], "layers_pattern": "layer"},
    "all but some": {"target_modules": ["query", "dense"], "exclude_modules": ["intermediate.dense"]},
    "embeddings": {"target_modules": ["word_embeddings", "query"]},
    "a norm saved whole": {"target_modules": ["query"], "modules_to_save": ["emb_layer_norm_after"]},
    "embeddings saved whole": {"target_modules": ["query"], "modules_to_save": ["word_embeddings"]},
    "new tokens": {"target_modules": ["word_embeddings", "query"], "tokens": 35},
    "new tokens saved whole": {"target_modules": ["query"], "modules_to_save": ["word_embeddings"], "tokens": 35},
}


def adapted(directory: Path, **settings: object) -> tuple[Path, Path, Vectors]:
    """Weights, an adapter of random numbers as PEFT saves it, and what fair-esm makes of PEFT's merged model."""
    base, adapter = directory / "base", directory / "adapter"
    kind, tokens = TASKS[settings.get("task_type")], settings.pop("tokens", 33)  # type: ignore[index]
    transformers_esm2(kind, vocab_size=tokens).save_pretrained(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(kind.from_pretrained(base), LoraConfig(**{"r": 4, "lora_alpha": 16} | settings))
        torch.manual_seed(3)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.2)
        model.save_pretrained(adapter)
        merged = PeftModel.from_pretrained(kind.from_pretrained(base), adapter).merge_and_unload().eval()
    trunk = {f"esm.{name}": tensor for name, tensor in merged.base_model.state_dict().items()}
    return base, adapter, by_fair_esm(fair_esm_of(old_names(trunk, rounded=False)))


@pytest.mark.parametrize("config", CONFIGS)
def test_an_adapter_gives_the_vectors_of_peft_s_merged_model(tmp_path: Path, config: str) -> None:
    base, adapter, expected = adapted(tmp_path, **dict(CONFIGS[config]))
    assert_vectors(base, expected, adapter)
    with pytest.raises(AssertionError):
        assert_vectors(base, expected)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Vectors]:
    return adapted(tmp_path_factory.mktemp("adapted"), target_modules=["query", "value"], task_type="SEQ_CLS")


@pytest.fixture
def copied(plain: tuple[Path, Path, Vectors], tmp_path: Path) -> tuple[Path, Path, Vectors]:
    """The weights, an adapter that may be changed, and its vectors."""
    base, adapter, expected = plain
    shutil.copytree(adapter, tmp_path / "adapter")
    return base, tmp_path / "adapter", expected


def change_config(adapter: Path, **settings: object) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def test_an_adapter_of_transformers_fits_the_same_weights_in_fair_esm_s_layout(
    copied: tuple[Path, Path, Vectors], tmp_path: Path
) -> None:
    base, adapter, expected = copied
    names = reference.hugging_face_names(3)
    state = old_names(transformers.EsmForMaskedLM.from_pretrained(base).state_dict(), rounded=False)
    trunk = {ours: state[name] for ours, name in names.items() if name in state and "lm_head" not in ours}
    torch.save(trunk, tmp_path / "fair_esm.pt")
    assert_vectors(tmp_path / "fair_esm.pt", expected, adapter)


def test_an_adapter_in_a_pickle_and_in_16_bit_is_read(copied: tuple[Path, Path, Vectors]) -> None:
    base, adapter, expected = copied
    tensors = load_file(adapter / "adapter_model.safetensors")
    (adapter / "adapter_model.safetensors").unlink()
    torch.save(tensors, adapter / "adapter_model.bin")
    assert_vectors(base, expected, adapter)
    halves = {name: tensor.half() for name, tensor in tensors.items()}
    torch.save(halves, adapter / "adapter_model.bin")
    weights.describe("m", base, adapter)


def test_merged_weights_have_a_hash_of_their_own_that_tells_of_each_file(copied: tuple[Path, Path, Vectors]) -> None:
    base, adapter, _ = copied
    descriptor = weights.describe("m", base, adapter)
    alone = weights.describe("m", base)
    assert [Path(file).name for file in descriptor.adapter] == ["adapter_config.json", "adapter_model.safetensors"]
    assert descriptor.sha256 != alone.sha256
    weights.require_unchanged(descriptor)
    change_config(adapter, lora_alpha=17)
    assert weights.describe("m", base, adapter).sha256 != descriptor.sha256
    with pytest.raises(weights.DataError, match="changed"):
        weights.require_unchanged(descriptor)
    descriptor = weights.describe("m", base, adapter)
    [part] = map(Path, descriptor.files)
    times, content = part.stat(), bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    os.utime(part, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(weights.DataError, match=r"damaged: .* --forcerun fetch_model"):
        weights.require_unchanged(descriptor)
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(weights.DataError, match=r"adapter_model\.safetensors"):
        weights.require_unchanged(descriptor)


def test_a_descriptor_of_an_earlier_version_is_read(copied: tuple[Path, Path, Vectors], tmp_path: Path) -> None:
    base, adapter, _ = copied
    descriptor = weights.describe("m", base, adapter)
    descriptor.save(tmp_path / "m.json")
    assert Descriptor.load(tmp_path / "m.json") == descriptor
    content = json.loads((tmp_path / "m.json").read_text())
    del content["adapter"], content["architecture"]["norm_eps"]
    (tmp_path / "m.json").write_text(json.dumps(content))
    assert Descriptor.load(tmp_path / "m.json").adapter == []


REFUSED: list[tuple[dict[str, object], str]] = [
    ({"peft_type": "IA3"}, "IA3"),
    ({"peft_type": None}, "None"),
    ({"init_lora_weights": "pissa"}, "pissa"),
    ({"layer_replication": [[0, 2]]}, "layer_replication"),
    ({"new_kind_of_lora": True}, "new_kind_of_lora"),
    ({"trainable_token_indices": [5]}, "trainable_token_indices"),
    ({"r": 8}, "rank"),
    ({"r": "4"}, "damaged"),
    ({"rank_pattern": {"query": 2}}, "rank"),
    ({"rank_pattern": {"(": 2}}, "pattern"),
    ({"target_modules": ["query"]}, "value"),
    ({"target_modules": ["query", "value", "key"]}, "key"),
    ({"target_modules": "("}, "pattern"),
    ({"use_dora": True}, "lora_magnitude_vector"),
]


@pytest.mark.parametrize(("settings", "reason"), REFUSED, ids=str)
def test_a_config_that_does_not_fit_or_is_not_understood_is_refused(
    copied: tuple[Path, Path, Vectors], settings: dict[str, object], reason: str
) -> None:
    base, adapter, _ = copied
    change_config(adapter, **settings)
    assert reason in refusal(base, adapter)


def saved_by_peft(directory: Path, kind: type[transformers.PreTrainedModel], config: object) -> tuple[Path, Path]:
    """Weights, and an adapter for them."""
    transformers_esm2(kind).save_pretrained(directory / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        get_peft_model(kind.from_pretrained(directory / "base"), config).save_pretrained(directory / "adapter")
    return directory / "base", directory / "adapter"


OTHER_KINDS = {
    "IA3": peft.IA3Config(target_modules=["key", "output.dense"], feedforward_modules=["output.dense"]),
    "ADALORA": peft.AdaLoraConfig(target_modules=["query"], total_step=9, init_r=4),
    "VERA": peft.VeraConfig(target_modules=["query"], r=4),
    "LOHA": peft.LoHaConfig(target_modules=["query"], r=4),
    "OFT": peft.OFTConfig(target_modules=["query"], r=4, oft_block_size=0),
    "LN_TUNING": peft.LNTuningConfig(target_modules=["LayerNorm"]),
    "PREFIX_TUNING": peft.PrefixTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=4),
    "PROMPT_TUNING": peft.PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=4),
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_another_kind_of_adapter_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    assert f"kind {kind}," in refusal(*saved_by_peft(tmp_path, transformers.EsmModel, OTHER_KINDS[kind]))


def test_the_head_that_is_one_tensor_with_the_embedding_is_adapted_with_it_or_not_at_all(tmp_path: Path) -> None:
    embedding = LoraConfig(target_modules=["word_embeddings"], init_lora_weights=False)
    saved = saved_by_peft(tmp_path / "embedding", transformers.EsmForMaskedLM, embedding)
    assert weights.describe("m", saved[0]).architecture.lm_head
    assert not weights.describe("m", *saved).architecture.lm_head
    head = LoraConfig(target_modules=["query", "decoder"], init_lora_weights=False)
    assert "lm_head.decoder" in refusal(*saved_by_peft(tmp_path / "head", transformers.EsmForMaskedLM, head))


QUERY = "base_model.model.esm.encoder.layer.1.attention.self.query"


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        (f"{QUERY}.lora_A.weight", None),
        (f"{QUERY}.lora_A.weight", torch.ones(4, 40)),
        (f"{QUERY}.lora_B.weight", torch.ones(48, 4, dtype=torch.int8)),
        (f"{QUERY}.lora_B.weight", torch.full((48, 4), torch.nan)),
        (f"{QUERY}.lora_C.weight", torch.ones(4, 48)),
        (f"{QUERY}.weight", torch.ones(48, 47)),
        ("base_model.model.esm.encoder.layer.7.attention.self.query.lora_A.weight", torch.ones(4, 48)),
        ("base_model.model.esm.encoder.layer.1.attention.self.gate.lora_A.weight", torch.ones(4, 48)),
        ("base_model.model.ema.encoder.layer.1.attention.self.query.lora_A.weight", torch.ones(4, 48)),
    ],
    ids=range(9),
)
def test_a_tensor_that_does_not_fit_or_is_not_understood_is_refused(
    copied: tuple[Path, Path, Vectors], name: str, tensor: torch.Tensor | None
) -> None:
    base, adapter, _ = copied
    tensors = load_file(adapter / "adapter_model.safetensors")
    if tensor is None:
        del tensors[name]
    else:
        tensors[name] = tensor
    save_file(tensors, adapter / "adapter_model.safetensors")
    text = refusal(base, adapter)
    assert "layer.1" in text or "layer.7" in text or "more than one" in text


def test_an_adapter_of_adapterhub_and_an_empty_directory_are_refused(
    plain: tuple[Path, Path, Vectors], tmp_path: Path
) -> None:
    assert "adapter_config.json" in refusal(plain[0], tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"config": {"architecture": "lora"}}')
    (tmp_path / "pytorch_adapter.bin").write_bytes(b"")
    assert "AdapterHub" in refusal(plain[0], tmp_path)
    assert "absent" in refusal(plain[0], tmp_path / "absent")


def test_a_head_that_an_adapter_brings_is_named_in_the_log(
    plain: tuple[Path, Path, Vectors], caplog: pytest.LogCaptureFixture
) -> None:
    base, adapter, _ = plain
    with caplog.at_level("INFO"):
        weights.describe("m", base, adapter)
    assert "classifier.dense" in caplog.text

"""What changes a trunk's numbers is understood or refused by its name; nothing gives other numbers, or a traceback."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import reference
import torch
import transformers
from checkpoints import assert_vectors, by_fair_esm, fair_esm_of, old_names, refusal, transformers_esm2
from esmflow.model import weights
from safetensors.torch import save_file

State = dict[str, torch.Tensor]
LAYER = "esm.encoder.layer.1"
QUERY = f"{LAYER}.attention.self.query.weight"
EMBEDDING = "esm.embeddings.word_embeddings.weight"


@pytest.fixture(scope="module")
def plain() -> State:
    return old_names(transformers_esm2().state_dict())


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A place for weights that has the config.json of `plain`."""
    text = transformers_esm2().config.to_json_string(use_diff=False)
    (tmp_path / "config.json").write_text(text)
    return tmp_path


def change_config(directory: Path, **settings: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


ADDED: dict[str, tuple[str, torch.Tensor, str]] = {
    "PEFT": (f"{LAYER}.attention.self.query.lora_A.default.weight", torch.ones(4, 48), "merge_and_unload"),
    "loralib": (f"{LAYER}.attention.self.query.lora_A", torch.ones(4, 48), "eval()"),
    "AdapterHub": (f"{LAYER}.output.adapters.a.adapter_up.weight", torch.ones(48, 8), "merge"),
    "prompt": ("prompt_encoder.default.embedding.weight", torch.ones(8, 48), "merge"),
    "IA3": (f"{LAYER}.attention.self.key.ia3_l", torch.ones(48, 1), "merge"),
    "int8 scale": (f"{LAYER}.attention.self.query.SCB", torch.ones(48), "unquantised"),
    "4 bit": (f"{QUERY}.absmax", torch.ones(48), "unquantised"),
    "GPTQ": (f"{LAYER}.attention.self.query.qweight", torch.ones(4, 48, dtype=torch.int32), "unquantised"),
    "another part": (f"{LAYER}.attention.self.gate.weight", torch.ones(48, 48), "not understood"),
    "in the embeddings": ("esm.embeddings.token_type_embeddings.weight", torch.ones(2, 48), "not understood"),
    "in the encoder": ("esm.encoder.relative_bias", torch.ones(2), "not understood"),
    "in the trunk": ("esm.norm.weight", torch.ones(48), "not understood"),
    "weight norm": (f"{LAYER}.output.dense.parametrizations.weight.original0", torch.ones(48, 1), "not understood"),
    "a second model": (f"ema.{QUERY}", torch.ones(48, 48), "more than one model"),
    "a second model of another family": ("text.layers.0.input_layernorm.bias", torch.ones(48), "more than one model"),
    "a second model of another layout": ("layers.0.self_attn_layer_norm.bias", torch.ones(48), "more than one model"),
    "a layer far off": ("esm.encoder.layer.99999999.attention.self.query.bias", torch.ones(48), "layer 99999999"),
    "a name of two lines": (f"{LAYER}.two\nlines", torch.ones(48), "not understood"),
    "a norm of ESM-1b": ("esm.embeddings.layer_norm.weight", torch.ones(48), "rotary"),
}


@pytest.mark.parametrize("kind", ADDED)
def test_a_tensor_that_changes_numbers_is_refused_by_name(directory: Path, plain: State, kind: str) -> None:
    name, tensor, reason = ADDED[kind]
    save_file(plain | {name: tensor}, directory / "model.safetensors")
    text = refusal(directory)
    assert reason in text
    assert "second" in kind or "far" in kind or name.replace("\n", "?") in text


CHANGED: dict[str, tuple[str, Callable[[torch.Tensor], torch.Tensor], str]] = {
    "int8": (QUERY, lambda tensor: (tensor * 100).to(torch.int8), "int8"),
    "uint8": (QUERY, lambda tensor: (tensor * 100).to(torch.uint8), "uint8"),
    "float8": (QUERY, lambda tensor: tensor.to(torch.float8_e4m3fn), "float8"),
    "int64": (QUERY, lambda tensor: tensor.long(), "int64"),
    "bool": (QUERY, lambda tensor: tensor > 0, "bool"),
    "complex": (QUERY, lambda tensor: tensor + 1j, "complex"),
    "NaN": (QUERY, lambda tensor: tensor.index_fill(0, torch.tensor([7]), float("nan")), "NaN"),
    "infinity": (f"{LAYER}.LayerNorm.bias", lambda tensor: tensor.index_fill(0, torch.tensor([7]), torch.inf), "inf"),
    "too large": (QUERY, lambda tensor: tensor.double() + 1e300, "inf"),
    "transposed": (f"{LAYER}.intermediate.dense.weight", lambda tensor: tensor.T.contiguous(), "shape"),
    "scalar": (QUERY, lambda tensor: tensor[0, 0], "shape"),
    "flat": (QUERY, lambda tensor: tensor.flatten(), "shape"),
    "empty": (QUERY, lambda tensor: tensor[:0], "shape"),
    "embedding of another alphabet": (EMBEDDING, lambda tensor: tensor[:30], "30"),
    "embedding of no dimensions": (EMBEDDING, lambda tensor: tensor[:, :0], "word_embeddings"),
    "embedding of one dimension": (EMBEDDING, lambda tensor: tensor[0], "word_embeddings"),
    "no frequencies": (f"{LAYER}.attention.self.rotary_embeddings.inv_freq", lambda tensor: tensor[:0], "inv_freq"),
    "other frequencies": (f"{LAYER}.attention.self.rotary_embeddings.inv_freq", lambda tensor: tensor * 1.1, "layer"),
}


@pytest.mark.parametrize("kind", CHANGED)
def test_a_tensor_that_cannot_be_a_trunk_s_is_refused_by_name(directory: Path, plain: State, kind: str) -> None:
    name, change, reason = CHANGED[kind]
    torch.save(plain | {name: change(plain[name])}, directory / "pytorch_model.bin")
    text = refusal(directory)
    assert name in text
    assert reason in text


@pytest.mark.parametrize("kind", ["sparse", "meta"])
def test_tensors_without_plain_numbers_are_refused_by_name(directory: Path, plain: State, kind: str) -> None:
    tensor = plain[QUERY].to_sparse() if kind == "sparse" else plain[QUERY].to("meta")
    torch.save(plain | {QUERY: tensor}, directory / "pytorch_model.bin")
    assert QUERY in refusal(directory)


SETTINGS: list[tuple[dict[str, object], str]] = [
    ({"num_attention_heads": 0}, "heads"),
    ({"num_attention_heads": -4}, "heads"),
    ({"num_attention_heads": 8}, "heads"),
    ({"num_attention_heads": "4"}, "num_attention_heads"),
    ({"num_attention_heads": {"a": 4}}, "num_attention_heads"),
    ({"num_hidden_layers": 2}, "num_hidden_layers"),
    ({"hidden_size": 64}, "hidden_size"),
    ({"intermediate_size": True}, "intermediate_size"),
    ({"position_embedding_type": "absolute"}, "absolute"),
    ({"position_embedding_type": "relative_key"}, "relative_key"),
    ({"token_dropout": "yes"}, "token_dropout"),
    ({"layer_norm_eps": -1}, "layer_norm_eps"),
    ({"layer_norm_eps": float("nan")}, "layer_norm_eps"),
    ({"rope_theta": 0}, "rope_theta"),
    ({"rope_theta": 500}, "frequencies"),
    ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "linear"),
    ({"pad_token_id": 0}, "pad_token_id"),
    ({"mask_token_id": 4}, "mask_token_id"),
    ({"is_decoder": True}, "is_decoder"),
    ({"emb_layer_norm_before": True}, "emb_layer_norm_before"),
    ({"head_dim": 24}, "head_dim"),
]


@pytest.mark.parametrize(("settings", "reason"), SETTINGS, ids=str)
def test_settings_that_do_not_fit_the_tensors_are_refused(
    directory: Path, plain: State, settings: dict[str, object], reason: str
) -> None:
    save_file(plain, directory / "model.safetensors")
    change_config(directory, **settings)
    assert reason in refusal(directory)


def test_a_config_of_transformers_without_token_dropout_is_refused(directory: Path, plain: State) -> None:
    save_file(plain, directory / "model.safetensors")
    path = directory / "config.json"
    settings = json.loads(path.read_text())
    del settings["token_dropout"]
    path.write_text(json.dumps(settings))
    assert "token_dropout" in refusal(directory)


@pytest.mark.parametrize("content", ["[]", "3", "null", "{", '"text"', "\udcff", '{"a":' * 100_000])
def test_a_config_that_is_no_object_is_refused_by_name(directory: Path, plain: State, content: str) -> None:
    save_file(plain, directory / "model.safetensors")
    (directory / "config.json").write_bytes(content.encode(errors="surrogateescape"))
    assert "config.json" in refusal(directory)


TOKENIZERS: list[tuple[str, object, str]] = [
    ("vocab.txt", "[PAD]\n[UNK]\nA\n", "[PAD]"),
    ("vocab.txt", "\n".join(reference.ALPHABET.all_toks[:20]), "20 tokens"),
    ("tokenizer.json", {"model": {"vocab": {"<cls>": 0, "A": 4, "L": 5}}}, "'A'"),
    ("tokenizer.json", {"model": {"vocab": [["<cls>", 0.0], ["<unk>", -1.5]]}}, "<unk>"),
    ("tokenizer.json", {"added_tokens": [{"id": 32, "content": "<extra>"}]}, "<extra>"),
    ("tokenizer_config.json", {"added_tokens_decoder": {"0": {"content": "<s>"}}}, "<s>"),
    ("added_tokens.json", {"<phospho>": 31}, "<phospho>"),
]


@pytest.mark.parametrize(
    ("name", "content", "token"), TOKENIZERS, ids=[f"{i}-{t[0]}" for i, t in enumerate(TOKENIZERS)]
)
def test_another_alphabet_is_refused_by_its_file(
    directory: Path, plain: State, name: str, content: object, token: str
) -> None:
    save_file(plain, directory / "model.safetensors")
    (directory / name).write_text(content if isinstance(content, str) else json.dumps(content))
    text = refusal(directory)
    assert name in text
    assert token in text


def test_the_tokenizer_that_transformers_saves_with_new_tokens_is_esm_s(directory: Path, plain: State) -> None:
    vocabulary = directory / "vocab.txt"
    vocabulary.write_text("\n".join(reference.ALPHABET.all_toks))
    tokenizer = transformers.EsmTokenizer(str(vocabulary))
    tokenizer.add_tokens(["<glyco>"])
    tokenizer.save_pretrained(directory)
    rows = torch.cat([plain[EMBEDDING], torch.randn(1, 48)])
    save_file(plain | {EMBEDDING: rows}, directory / "model.safetensors")
    assert_vectors(directory, by_fair_esm(fair_esm_of(plain)))


def whole_model(path: Path) -> None:
    torch.save(transformers_esm2(), path)


def module_of_a_user(path: Path) -> None:
    torch.save({"model": transformers_esm2().state_dict(), "criterion": torch.nn.Linear(2, 2)}, path)


@pytest.mark.parametrize("make", [whole_model, module_of_a_user], ids=lambda make: make.__name__)
def test_a_pickled_module_is_refused_with_what_to_save_instead(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "model.pt")
    text = refusal(tmp_path / "model.pt")
    assert "state_dict()" in text
    assert re.search(r"EsmForMaskedLM|Linear", text)


def test_a_page_and_a_pointer_in_place_of_weights_are_told_from_damage(tmp_path: Path) -> None:
    (tmp_path / "page.pt").write_text("\n<!DOCTYPE html><html>Log in</html>")
    assert "web page" in refusal(tmp_path / "page.pt")
    (tmp_path / "pointer.bin").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 31\n")
    assert "git lfs pull" in refusal(tmp_path / "pointer.bin")


OTHER_MODELS = {
    "MSA Transformer": "encoder.sentence_encoder.layers.0.row_self_attention.layer.k_proj.weight",
    "ESM-1": "decoder.sentence_encoder.layers.0.self_attn.bias_k",
    "ESM-IF1": "encoder.gvp_encoder.encoder.conv.0.weight",
    "ESM3": "transformer.blocks.0.geom_attn.proj.weight",
    "ESMFold": "trunk.structure_module.ipa.linear_q.weight",
}


@pytest.mark.parametrize("kind", OTHER_MODELS)
def test_another_model_of_the_field_is_refused_by_what_it_is(tmp_path: Path, kind: str) -> None:
    torch.save({"model": {OTHER_MODELS[kind]: torch.ones(2)}}, tmp_path / "other.pt")
    assert kind in refusal(tmp_path / "other.pt")


@pytest.mark.parametrize("content", [b"\xef\xbb\xbf<html>", b'{"error": "Repository not found"}'])
def test_a_server_s_message_in_place_of_weights_is_told_from_damage(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "page.pt").write_bytes(content)
    assert "server" in refusal(tmp_path / "page.pt")


def test_a_head_of_a_module_further_out_is_not_the_model_s(tmp_path: Path, plain: State) -> None:
    state = {name if name.startswith("lm_head") else f"protein.model.{name}": t for name, t in plain.items()}
    torch.save(state, tmp_path / "m.pt")
    assert not weights.describe("m", tmp_path / "m.pt").architecture.lm_head


def test_an_adapter_beside_a_model_is_asked_for(tmp_path: Path) -> None:
    transformers_esm2().save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    assert "'adapter'" in refusal(tmp_path)
    weights.describe("m", tmp_path / "model.safetensors")


def test_an_adapter_in_place_of_a_model_is_refused_with_the_key_for_it(tmp_path: Path) -> None:
    lora = {"base_model.model.esm.encoder.layer.0.attention.self.query.lora_A.weight": torch.ones(4, 48)}
    save_file(lora, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    assert "'adapter'" in refusal(tmp_path)
    assert "'adapter'" in refusal(tmp_path / "adapter_model.safetensors")


def test_a_file_that_may_not_be_read_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.pt").mkdir()
    assert "a.pt" in refusal(tmp_path / "a.pt")

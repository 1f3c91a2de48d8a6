"""What changes a trunk's numbers is understood or refused by its name; nothing gives other numbers, or a traceback."""

import json
import re
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
import transformers
from checkpoints import Vectors, assert_vectors, by_fair_esm, fair_esm_of, old_names, refusal, transformers_esm2
from esmflow.errors import DataError
from safetensors.torch import load_file, save_file

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
    "a norm of ESM-1b": ("esm.embeddings.layer_norm.weight", torch.ones(48), "rotary"),
}


@pytest.mark.parametrize("kind", ADDED)
def test_a_tensor_that_changes_numbers_is_refused_by_name(directory: Path, plain: State, kind: str) -> None:
    name, tensor, reason = ADDED[kind]
    save_file(plain | {name: tensor}, directory / "model.safetensors")
    text = refusal(directory)
    assert reason in text
    assert kind == "a second model" or name in text


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
]


@pytest.mark.parametrize(("settings", "reason"), SETTINGS, ids=str)
def test_settings_that_do_not_fit_the_tensors_are_refused(
    directory: Path, plain: State, settings: dict[str, object], reason: str
) -> None:
    save_file(plain, directory / "model.safetensors")
    change_config(directory, **settings)
    assert reason in refusal(directory)


@pytest.mark.parametrize("content", ["[]", "3", "null", "{", '"text"', "\udcff", '{"a":' * 100_000])
def test_a_config_that_is_no_object_is_refused_by_name(directory: Path, plain: State, content: str) -> None:
    save_file(plain, directory / "model.safetensors")
    (directory / "config.json").write_bytes(content.encode(errors="surrogateescape"))
    assert "config.json" in refusal(directory)


TOKENIZERS: list[tuple[str, object, str]] = [
    ("vocab.txt", "[PAD]\n[UNK]\nA\n", "[PAD]"),
    ("tokenizer.json", {"model": {"vocab": {"<cls>": 0, "A": 4, "L": 5}}}, "'A'"),
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


def test_an_adapter_in_place_of_a_model_is_refused_with_the_key_for_it(tmp_path: Path) -> None:
    lora = {"base_model.model.esm.encoder.layer.0.attention.self.query.lora_A.weight": torch.ones(4, 48)}
    save_file(lora, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    assert "'adapter'" in refusal(tmp_path)
    assert "'adapter'" in refusal(tmp_path / "adapter_model.safetensors")


def test_a_file_that_may_not_be_read_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.pt").mkdir()
    assert "a.pt" in refusal(tmp_path / "a.pt")


def fair_esm2(path: Path) -> None:
    reference.tiny_esm2(path / "weights.pt")


def fair_esm1b(path: Path) -> None:
    reference.tiny_esm1b(path / "weights.pt")


def bare_esm2(path: Path) -> None:
    torch.save(old_names(transformers_esm2().state_dict()), path / "weights.pt")


def esm2_of_transformers(path: Path) -> None:
    transformers_esm2().save_pretrained(path)


def load(directory: Path) -> tuple[Path, dict[str, object], State]:
    """The file, what is in it, and its tensors."""
    [path] = [path for path in directory.iterdir() if path.suffix in (".pt", ".safetensors")]
    if path.suffix == ".safetensors":
        return path, {}, load_file(path)
    with torch.serialization.safe_globals([Namespace]):
        content = torch.load(path, weights_only=True)
    return path, content, content.get("model", content)


def save(path: Path, content: dict[str, object], state: State) -> None:
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path, metadata={"format": "pt"})
    else:
        torch.save(content | {"model": state} if "model" in content else state, path)


def expected_of(content: dict[str, object], state: State) -> Vectors:
    """fair-esm's vectors of a file that has all that fair-esm's modules have."""
    if "args" in content:
        model = reference.esm.model.esm1.ProteinBertModel(content["args"], reference.ALPHABET)
    elif "cfg" in content:
        model = reference.esm.model.esm2.ESM2(3, 48, 4, reference.ALPHABET)
    else:
        state = {name.replace(".gamma", ".weight").replace(".beta", ".bias"): t.float() for name, t in state.items()}
        for name in [name for name in state if "layer.*" in name]:
            tensor = state.pop(name)
            state |= {name.replace("*", str(layer)): tensor for layer in range(3)}
        return by_fair_esm(fair_esm_of(state))
    bare = {re.sub(r"^encoder\.(sentence_encoder\.)?", "", name): t.float() for name, t in state.items()}
    missing, unexpected = model.load_state_dict(bare, strict=False)
    assert not unexpected
    assert all(name.startswith(("lm_head", "contact_head")) for name in missing)
    return by_fair_esm(model.eval())


def mutate(state: State, random: np.random.Generator) -> tuple[str, State]:
    """One change of one tensor: what it is, and the state with it."""
    state = dict(state)
    name = str(random.choice(sorted(state)))
    tensor = state[name]
    kind = random.choice(["drop", "rename", "shape", "dtype", "NaN", "add"])
    if kind == "drop":
        del state[name]
    elif kind == "rename":
        parts = name.split(".")
        parts[random.integers(len(parts))] = str(random.choice(["other", "3", "weight", "layer", "1"]))
        state[".".join(parts)] = state.pop(name)
    elif kind == "shape":
        changes = [
            tensor[: len(tensor) // 2],
            torch.cat([tensor, tensor]),
            tensor.mT.contiguous() if tensor.ndim == 2 else tensor[1:],
            tensor[None],
        ]
        state[name] = changes[random.integers(len(changes))]
    elif kind == "dtype":
        dtypes = [torch.int8, torch.int64, torch.float16, torch.bfloat16, torch.float64]
        state[name] = tensor.to(dtypes[random.integers(len(dtypes))])
    elif kind == "NaN":
        flat = tensor.clone().flatten()
        flat[random.integers(len(flat))] = random.choice([np.nan, np.inf, -np.inf])
        state[name] = flat.view(tensor.shape)
    else:
        ends = ["scale", "weight_g", "lora_A", "bias_k", "extra.weight"]
        state[f"{name.rpartition('.')[0]}.{random.choice(ends)}"] = torch.randn(4)
    return f"{kind} {name}", state


@pytest.mark.parametrize(
    "make", [fair_esm2, fair_esm1b, bare_esm2, esm2_of_transformers], ids=lambda make: make.__name__
)
def test_a_random_change_of_a_checkpoint_gives_its_own_vectors_or_a_refusal(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path)
    path, content, state = load(tmp_path)
    unchanged = expected_of(content, state)
    random = np.random.default_rng(5)
    used, refused = [], []
    for _ in range(60):
        change, mutant = mutate(state, random)
        save(path, content, mutant)
        try:
            expected = expected_of(content, mutant)
        except (AssertionError, RuntimeError, KeyError, IndexError, ValueError):
            # What fair-esm cannot load may be in what the trunk does not use, such as a head.
            expected = unchanged
        line = refusal_or_vectors(tmp_path if path.suffix == ".safetensors" else path, expected)
        assert line is None or len(line.splitlines()) == 1, change
        (used if line is None else refused).append(change)
    assert len(used) >= 5, refused
    assert len(refused) >= 20, used


def refusal_or_vectors(weights: Path, expected: Vectors) -> str | None:
    """The line with which weights are refused; None where their vectors are these."""
    try:
        assert_vectors(weights, expected)
    except DataError as error:
        return str(error)
    return None

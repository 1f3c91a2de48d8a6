"""Weights as other programs save them: every name that a trunk goes by gives the vectors of fair-esm's module."""

import hashlib
import io
import json
import logging
import random
import shutil
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
import transformers
from checkpoints import (
    SEQUENCES,
    assert_vectors,
    by_fair_esm,
    fair_esm_of,
    old_names,
    refusal,
    transformers_esm2,
    vectors,
)
from esmflow.engine.engine import Engine
from esmflow.errors import DataError
from esmflow.model import weights
from esmflow.model.trunk import Esm
from esmflow.representation import VECTORS, Output
from safetensors.torch import load_file, save_file

State = dict[str, torch.Tensor]


def config_beside(directory: Path, **settings: object) -> None:
    """The config.json of `transformers_esm2()`."""
    text = transformers_esm2().config.to_json_string(use_diff=False)
    (directory / "config.json").write_text(json.dumps(json.loads(text) | settings))


@pytest.fixture(scope="module")
def plain() -> State:
    """The tensors of an ESM-2 as transformers 4 saves them."""
    return old_names(transformers_esm2().state_dict())


@pytest.mark.parametrize(
    "kind",
    [
        transformers.EsmModel,
        transformers.EsmForMaskedLM,
        transformers.EsmForSequenceClassification,
        transformers.EsmForTokenClassification,
    ],
)
@pytest.mark.parametrize("options", [{}, {"max_shard_size": "60KB"}], ids=["one file", "shards"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_what_this_transformers_saves_is_read(
    tmp_path: Path, kind: type[transformers.PreTrainedModel], options: dict[str, str], dtype: torch.dtype
) -> None:
    model = transformers_esm2(kind).to(dtype)
    model.save_pretrained(tmp_path, **options)
    assert bool(options) == (len(list(tmp_path.glob("*.safetensors"))) > 1)
    state = {
        name if name.startswith(("esm.", "lm_", "cl")) else f"esm.{name}": t for name, t in model.state_dict().items()
    }
    theirs = old_names({name: tensor.float() for name, tensor in state.items()})
    for name in theirs:
        if name.endswith("inv_freq"):
            theirs[name] = state["esm.rotary_embeddings.inv_freq"].float()
    assert_vectors(tmp_path, by_fair_esm(fair_esm_of(theirs)))
    architecture = weights.describe("m", tmp_path).architecture
    assert architecture.lm_head == (kind is transformers.EsmForMaskedLM)
    assert architecture.contact_head


def test_the_head_of_a_model_saved_without_its_tied_matrix_gives_its_logits(tmp_path: Path) -> None:
    model = transformers_esm2()
    model.save_pretrained(tmp_path)
    output = Output(3, "logits")
    esm = Esm(weights.load(weights.describe("m", tmp_path)), torch.device("cpu"))
    embedded = Engine(esm).embed([SEQUENCES[0].encode()], [output])
    _, _, tokens = reference.ALPHABET.get_batch_converter()([("", SEQUENCES[0])])
    with torch.no_grad():
        logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[0, 1:-1]
    assert np.abs(embedded.values[output][0] - logits.numpy()).max() <= 1e-4


def assert_means_of_the_last_layer(path: Path, model: torch.nn.Module) -> None:
    means = vectors(path, 3)[Output(3, "mean")]
    for row, sequence in enumerate(SEQUENCES):
        _, _, tokens = reference.ALPHABET.get_batch_converter()([("", sequence)])
        with torch.no_grad():
            states = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state
        mean = states[0, 1:-1].mean(0).numpy()
        assert np.linalg.norm(means[row] - mean) <= 1e-5 * np.linalg.norm(mean)


@pytest.mark.parametrize("eps", [1e-12, 1e-6, 1e-3])
@pytest.mark.parametrize("theta", [10000.0, 500.0])
def test_the_config_s_epsilon_and_rotary_base_are_those_of_the_model(tmp_path: Path, eps: float, theta: float) -> None:
    model = transformers_esm2(transformers.EsmModel, layer_norm_eps=eps, rope_theta=theta)
    model.save_pretrained(tmp_path)
    assert_means_of_the_last_layer(tmp_path, model)
    usual = tmp_path / "usual"
    shutil.copytree(tmp_path, usual)
    settings = json.loads((tmp_path / "config.json").read_text())
    (usual / "config.json").write_text(json.dumps(settings | {"layer_norm_eps": 1e-5}))
    assert weights.describe("m", usual).sha256 != weights.describe("m", tmp_path).sha256


@torch.no_grad()
def by_transformers(model: transformers.EsmForMaskedLM, sequence: str) -> dict[tuple[int, str], np.ndarray]:
    """Every representation of every layer, by transformers' forward pass of this sequence alone."""
    _, _, tokens = reference.ALPHABET.get_batch_converter()([("", sequence)])
    mask = torch.ones_like(tokens)
    states = model(input_ids=tokens, attention_mask=mask, output_hidden_states=True)
    layers = {layer: x[0] for layer, x in enumerate(states.hidden_states)}
    return {
        **reference.pool(layers),
        **{(layer, "per_tok"): x[1:-1].numpy() for layer, x in layers.items()},
        (max(layers), "logits"): states.logits[0, 1:-1].numpy(),
        (max(layers), "contacts"): model.predict_contacts(tokens, mask)[0].numpy(),
    }


@pytest.mark.parametrize(
    ("settings", "longest"),
    [
        ({}, 1100),
        ({"num_hidden_layers": 5, "num_attention_heads": 3, "hidden_size": 36}, 600),
        ({"position_embedding_type": "absolute", "emb_layer_norm_before": True, "max_position_embeddings": 1026}, 1022),
        ({"position_embedding_type": "absolute", "max_position_embeddings": 514, "token_dropout": False}, 510),
    ],
    ids=["ESM-2", "another size", "ESM-1b", "ESM-1v"],
)
def test_every_representation_of_proteins_up_to_the_longest_in_one_pack(
    tmp_path: Path, settings: dict[str, object], longest: int
) -> None:
    model = transformers_esm2(attn_implementation="eager", **settings)
    model.save_pretrained(tmp_path)
    draw = random.Random(1)
    lengths = [1, 2, 33, 33, 140, 400, longest]
    sequences = ["".join(draw.choices("ACDEFGHIKLMNPQRSTVWYXBZUO", k=length)) for length in lengths]
    layers = model.config.num_hidden_layers
    outputs = [Output(layer, name) for layer in range(layers + 1) for name in (*VECTORS, "per_tok")]
    outputs += [Output(layers, name) for name in ("logits", "contacts")]
    engine = Engine(Esm(weights.load(weights.describe("m", tmp_path)), torch.device("cpu")), tokens_per_pack=8192)
    embedded = engine.embed([sequence.encode() for sequence in sequences], outputs)
    assert engine.figures.packs == 1
    for row, sequence in enumerate(sequences):
        expected = by_transformers(model, sequence)
        for output in outputs:
            difference = embedded.values[output][row] - expected[output]
            if output.representation in ("logits", "contacts"):
                assert np.abs(difference).max() <= 1e-4, (output, len(sequence))
            else:
                scale = np.linalg.norm(expected[output]) or np.linalg.norm(expected[output.layer, "mean"])
                assert np.linalg.norm(difference) <= 1e-5 * scale, (output, len(sequence))


def save_without_what_tells(directory: Path) -> None:
    """A model of transformers whose config.json alone says how many heads, and positions of which kind it has."""
    transformers_esm2(transformers.EsmModel).save_pretrained(directory)
    state = load_file(directory / "model.safetensors")
    kept = {name: t for name, t in state.items() if not name.endswith("inv_freq") and "contact_head" not in name}
    positions = {"embeddings.position_embeddings.weight": torch.randn(1026, 48)}
    save_file(kept | positions, directory / "model.safetensors")


@pytest.mark.parametrize(
    "settings",
    [
        {"token_dropout": False},
        {"token_dropout": None},
        {"layer_norm_eps": 1e-12},
        {"rope_theta": 500.0},
        {"num_attention_heads": 2},
        {"position_embedding_type": "absolute"},
    ],
    ids=str,
)
def test_what_config_json_alone_says_is_followed_and_keyed(tmp_path: Path, settings: dict[str, object]) -> None:
    save_without_what_tells(tmp_path)
    before = weights.describe("m", tmp_path)
    text = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(text | settings))
    model = transformers.EsmModel.from_pretrained(tmp_path).eval()
    assert_means_of_the_last_layer(tmp_path, model)
    assert weights.describe("m", tmp_path).sha256 != before.sha256
    with pytest.raises(DataError, match="changed"):
        weights.load(before)


def test_weights_with_one_buffer_of_the_model_alone_are_not_those_of_older_stores(tmp_path: Path, plain: State) -> None:
    for wrapper, stays in [
        ("plain", True),
        ("lightning", True),
        ("star", True),
        ("half", True),
        ("one buffer", False),
    ]:
        path = tmp_path / f"{wrapper}.pt"
        torch.save(WRAPPERS[wrapper](dict(plain)), path)
        config_beside(tmp_path)
        of_file = hashlib.sha256(path.read_bytes()).hexdigest()
        assert (weights.describe("m", path).sha256 == of_file) == stays, wrapper


def renamed(change: Callable[[str], str]) -> Callable[[State], State]:
    return lambda state: {change(name): tensor for name, tensor in state.items()}


def one_buffer(name: str) -> Callable[[State], State]:
    def change(state: State) -> State:
        buffers = [key for key in state if key.endswith("inv_freq")]
        rest = {key: tensor for key, tensor in state.items() if key not in buffers}
        return rest | {name: state[buffers[0]]}

    return change


def wrapped_layers(state: State) -> State:
    """As a model of which each layer was compiled, or sharded, by itself."""
    return {
        name.replace(".attention.", "._orig_mod.attention.").replace(
            "intermediate.", "_fsdp_wrapped_module.intermediate."
        ): t
        for name, t in state.items()
    }


WRAPPERS: dict[str, Callable[[State], object]] = {
    "plain": dict,
    **{
        prefix: renamed(lambda name, prefix=prefix: prefix + name)  # type: ignore[misc]
        for prefix in (
            "module.",
            "_orig_mod.",
            "model.",
            "encoder.",
            "backbone.",
            "module._orig_mod.model.",
            "model.net.esm2.",
            "base_model.model.",
        )
    },
    **{
        f"trunk as {prefix or 'all'}": renamed(lambda name, prefix=prefix: name.replace("esm.", prefix, 1))  # type: ignore[misc]
        for prefix in ("", "encoder.", "backbone.", "protein_encoder.model.")
    },
    "one buffer": one_buffer("esm.rotary_embeddings.inv_freq"),
    "star": one_buffer("esm.encoder.layer.*.attention.self.rotary_embeddings.inv_freq"),
    "gamma and beta": renamed(
        lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("Norm.bias", "Norm.beta")
    ),
    "unused positions": lambda state: (
        state
        | {
            "esm.embeddings.position_embeddings.weight": torch.randn(1026, 48),
            "esm.embeddings.position_ids": torch.arange(9),
        }
    ),
    "more tokens": lambda state: (
        state
        | {
            "esm.embeddings.word_embeddings.weight": torch.cat(
                [state["esm.embeddings.word_embeddings.weight"], torch.full((31, 48), float("nan"))]
            )
        }
    ),
    "wrapped layers": wrapped_layers,
    "lightning": lambda state: {
        "epoch": 3,
        "state_dict": {f"model.{name}": tensor for name, tensor in state.items()} | {"loss.weight": torch.ones(3)},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}}],
        "hyper_parameters": {"lr": 1e-4},
    },
    "tutorial": lambda state: {
        "epoch": 3,
        "model_state_dict": state,
        "optimizer_state_dict": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]},
    },
    "an optimizer that goes by names": lambda state: {
        "model": state,
        "optimizer": {"state": {name: {"exp_avg": torch.ones_like(t)} for name, t in state.items()}},
    },
    "arguments of a trainer": lambda state: {
        "state_dict": state,
        "hyper_parameters": {"args": Namespace(lr=1e-4), "root": Path("/data"), "steps": {1, 2}, "dtype": torch.half},
        "log": io.BytesIO(b"text"),
    },
    "figures of NumPy": lambda state: {
        "model": state,
        "best_auc": np.float64(0.9),
        "steps": np.int64(3),
        "losses": np.ones(3, np.float32),
    },
    "nested": lambda state: {"checkpoint": {"model": {"net": state}}},
    "deepspeed": lambda state: {"module": state, "ds_version": "0.17"},
    "averaged": lambda state: (
        {f"module.{name}": tensor for name, tensor in state.items()} | {"n_averaged": torch.tensor(3)}
    ),
    "other heads": lambda state: (
        state
        | {
            "classifier.out_proj.weight": torch.ones(3, 48),
            "esm.pooler.dense.bias": torch.ones(48),
            "crf.transitions": torch.ones(2),
        }
    ),
    "half": lambda state: {name: tensor.half() for name, tensor in state.items()},
    "brain": lambda state: {name: tensor.bfloat16() for name, tensor in state.items()},
    "double": lambda state: {name: tensor.double() for name, tensor in state.items()},
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_every_wrapper_s_names_give_the_model(tmp_path: Path, plain: State, wrapper: str) -> None:
    dtype = {"half": torch.float16, "brain": torch.bfloat16}.get(wrapper, torch.float32)
    torch.save(WRAPPERS[wrapper](dict(plain)), tmp_path / "best.pt")
    config_beside(tmp_path)
    assert_vectors(tmp_path / "best.pt", by_fair_esm(fair_esm_of({name: t.to(dtype) for name, t in plain.items()})))


@pytest.mark.parametrize("wrapper", ["module.", "model.", "encoder.", "backbone.", "_orig_mod."])
def test_wrappers_of_fair_esm_s_modules_give_the_model(tmp_path: Path, wrapper: str) -> None:
    for make in (reference.tiny_esm2, reference.tiny_esm1b):
        model = make(tmp_path / "tiny.pt")
        state = {f"{wrapper}{name}": tensor for name, tensor in model.state_dict().items()}
        torch.save({"state_dict": state}, tmp_path / "wrapped.ckpt")
        assert_vectors(tmp_path / "wrapped.ckpt", by_fair_esm(model))


def test_without_a_buffer_frequencies_are_those_that_transformers_computes(tmp_path: Path) -> None:
    model = transformers_esm2()
    state = model.state_dict()
    theirs = old_names(state, rounded=False)
    save_file(
        {name: t for name, t in old_names(state).items() if "inv_freq" not in name}, tmp_path / "model.safetensors"
    )
    config_beside(tmp_path)
    assert_vectors(tmp_path, by_fair_esm(fair_esm_of(theirs)))


def test_what_lies_outside_of_the_trunk_is_named_in_the_log(
    tmp_path: Path, plain: State, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(WRAPPERS["other heads"](dict(plain)), tmp_path / "best.pt")
    with caplog.at_level(logging.INFO):
        weights.describe("m", tmp_path / "best.pt")
    assert "classifier (1 tensors)" in caplog.text
    assert "crf" in caplog.text
    assert "esm.pooler" in caplog.text


def test_a_file_without_its_config_says_itself_what_its_positions_are(tmp_path: Path, plain: State) -> None:
    torch.save(plain, tmp_path / "rotary.bin")
    assert weights.describe("m", tmp_path / "rotary.bin").architecture.kind == "ESM-2"
    torch.save({name: t for name, t in plain.items() if "inv_freq" not in name}, tmp_path / "untold.bin")
    assert "config.json" in refusal(tmp_path / "untold.bin")
    positions = {"esm.embeddings.position_embeddings.weight": torch.randn(1026, 48)}
    torch.save({name: t for name, t in plain.items() if "inv_freq" not in name} | positions, tmp_path / "untold.bin")
    assert "config.json" in refusal(tmp_path / "untold.bin")


def nvidia_names(state: State, heads: int, *, by_head: bool = True) -> State:
    """What NVIDIA's conversion to TransformerEngine makes of an ESM-2 of transformers, done in plain loops."""
    result = {}
    for name, tensor in state.items():
        for theirs, new in (
            ("esm.encoder.layer.", "esm.encoder.layers."),
            ("attention.output.dense.", "self_attention.proj."),
            ("attention.LayerNorm.", "self_attention.layernorm_qkv.layer_norm_"),
            ("intermediate.dense.", "layernorm_mlp.fc1_"),
            (".output.dense.", ".layernorm_mlp.fc2_"),
            (".LayerNorm.", ".layernorm_mlp.layer_norm_"),
            ("lm_head.layer_norm.", "lm_head.decoder.layer_norm_"),
            ("lm_head.bias", "lm_head.decoder.bias"),
        ):
            name = name.replace(theirs, new)
        if not any(part in name for part in ("inv_freq", "contact_head", "attention.self")):
            result[name] = tensor
        if name.endswith("word_embeddings.weight"):
            result[name] = torch.cat([tensor, torch.zeros(31, tensor.shape[1])])
    for layer in range(3):
        for part in ("weight", "bias"):
            attention = f"esm.encoder.layer.{layer}.attention.self."
            q, k, v = (state[f"{attention}{which}.{part}"] for which in ("query", "key", "value"))
            size = len(q) // heads
            rows = [which[head * size : (head + 1) * size] for head in range(heads) for which in (q, k, v)]
            fused = torch.cat(rows if by_head else [q, k, v])
            result[f"esm.encoder.layers.{layer}.self_attention.layernorm_qkv.{part}"] = fused
        result[f"esm.encoder.layers.{layer}.self_attention.core_attention._extra_state"] = torch.zeros(
            4, dtype=torch.uint8
        )
    return result


@pytest.mark.parametrize("prefix", ["esm.", "model."])
@pytest.mark.parametrize("by_head", [True, False])
def test_nvidia_s_conversion_is_the_same_model(tmp_path: Path, by_head: bool, prefix: str) -> None:
    model = transformers_esm2()
    state = model.state_dict()
    theirs = old_names(state, rounded=False)
    converted = nvidia_names({name: t.clone() for name, t in theirs.items()}, heads=4, by_head=by_head)
    save_file(
        {name.replace("esm.", prefix, 1): t.clone() for name, t in converted.items()}, tmp_path / "model.safetensors"
    )
    config_beside(tmp_path, model_type="nv_esm", padded_vocab_size=64, qkv_weight_interleaved=by_head)
    assert_vectors(tmp_path, by_fair_esm(fair_esm_of(theirs)))
    assert weights.describe("m", tmp_path).architecture.lm_head

"""Weights files: every layout gives the same model, and what is none is refused by name."""

import hashlib
import io
import json
import os
import pickle
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from checkpoints import SEQUENCES, Vectors, assert_vectors, by_fair_esm, refusal, vectors
from esm.model.esm1 import ProteinBertModel
from esm.model.msa_transformer import MSATransformer
from esmflow.architecture import Architecture
from esmflow.model import weights
from esmflow.planned_model import Descriptor
from esmflow.representation import Output
from safetensors.torch import save_file


@pytest.fixture(scope="module")
def expected_of_8m(esm2_8m: Path) -> Vectors:
    return by_fair_esm(reference.esm2_of_hugging_face(esm2_8m))


def state_of(path: Path) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in torch.load(path, weights_only=True).items()}


def hf_file(_directory: Path, source: Path) -> Path:
    return source


def hf_safetensors(directory: Path, source: Path) -> Path:
    save_file(state_of(source), directory / "any.safetensors")
    return directory / "any.safetensors"


def hf_safetensors_with_a_wrong_suffix(directory: Path, source: Path) -> Path:
    save_file(state_of(source), directory / "any.bin")
    return directory / "any.bin"


def hf_directory(directory: Path, source: Path) -> Path:
    (directory / "pytorch_model.bin").symlink_to(source)
    return directory


def hf_directory_with_config(directory: Path, source: Path) -> Path:
    config = {
        "model_type": "esm",
        "position_embedding_type": "rotary",
        "token_dropout": True,
        "num_attention_heads": 20,
    }
    (directory / "config.json").write_text(json.dumps(config))
    save_file(state_of(source), directory / "model.safetensors")
    return directory


def hf_shards(directory: Path, source: Path) -> Path:
    state = state_of(source)
    places = {name: f"model-{number % 3 + 1:05}-of-00003.safetensors" for number, name in enumerate(state)}
    for place in set(places.values()):
        save_file({name: state[name] for name in state if places[name] == place}, directory / place)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return directory


def hf_bin_shards(directory: Path, source: Path) -> Path:
    state = state_of(source)
    places = {name: f"pytorch_model-{number % 2 + 1:05}-of-00002.bin" for number, name in enumerate(state)}
    for place in set(places.values()):
        torch.save({name: state[name] for name in state if places[name] == place}, directory / place)
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return directory


def trunk_only(directory: Path, source: Path) -> Path:
    state = {name.removeprefix("esm."): tensor for name, tensor in state_of(source).items() if name.startswith("esm.")}
    save_file(state, directory / "model.safetensors")
    return directory


Layout = Callable[[Path, Path], Path]
LAYOUTS: list[Layout] = [
    hf_file,
    hf_safetensors,
    hf_safetensors_with_a_wrong_suffix,
    hf_directory,
    hf_directory_with_config,
    hf_shards,
    hf_bin_shards,
    trunk_only,
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_every_hugging_face_layout_is_the_same_model(
    tmp_path: Path, esm2_8m: Path, expected_of_8m: Vectors, layout: Layout
) -> None:
    path = layout(tmp_path, esm2_8m)
    architecture = weights.read(weights.weight_files(path)).architecture
    assert replace(architecture, lm_head=False, contact_head=False) == Architecture(
        "ESM-2", 6, 320, 20, 1280, token_dropout=True, max_residues=None, lm_head=False, contact_head=False
    )
    assert_vectors(path, expected_of_8m)


def plain_state(path: Path) -> None:
    content = torch.load(path, weights_only=False)
    torch.save(content["model"], path)


def old_format(path: Path) -> None:
    content = torch.load(path, weights_only=False)
    torch.save(content, path, _use_new_zipfile_serialization=False)


def half_precision(path: Path) -> None:
    content = torch.load(path, weights_only=False)
    content["model"] = {name: tensor.half() for name, tensor in content["model"].items()}
    torch.save(content, path)


@pytest.mark.parametrize("change", [None, plain_state, old_format])
def test_fair_esm_esm2_files_give_their_model(tmp_path: Path, change: Callable[[Path], None] | None) -> None:
    path = tmp_path / "any.pt"
    model = reference.tiny_esm2(path, layers=2, embed_dim=48, heads=6)
    if change:
        change(path)
    found = weights.describe("m", path).architecture
    assert replace(found, lm_head=False, contact_head=False) == Architecture(
        "ESM-2", 2, 48, 6, 192, token_dropout=True, max_residues=None, lm_head=False, contact_head=False
    )
    assert_vectors(path, by_fair_esm(model))


@pytest.mark.parametrize("norm_before", [True, False])
@pytest.mark.parametrize("change", [None, plain_state, old_format])
def test_fair_esm_esm1b_files_give_their_model(
    tmp_path: Path, change: Callable[[Path], None] | None, norm_before: bool
) -> None:
    path = tmp_path / "any.pt"
    model = reference.tiny_esm1b(path, layers=3, embed_dim=32, heads=4, norm_before=norm_before)
    if change:
        change(path)
    found = weights.describe("m", path).architecture
    assert replace(found, lm_head=False, contact_head=False) == Architecture(
        "ESM-1b", 3, 32, 4, 128, token_dropout=True, max_residues=1022, lm_head=False, contact_head=False
    )
    assert_vectors(path, by_fair_esm(model))


def test_weights_stored_in_half_precision_are_computed_in_full(tmp_path: Path) -> None:
    path = tmp_path / "half.pt"
    model = reference.tiny_esm2(path)
    half_precision(path)
    assert_vectors(path, by_fair_esm(model.half().float()))


def test_hugging_face_s_own_esm1b_is_read_as_it_computes_it(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.EsmConfig(
        vocab_size=33,
        mask_token_id=32,
        pad_token_id=1,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        position_embedding_type="absolute",
        max_position_embeddings=1026,
        emb_layer_norm_before=True,
        token_dropout=True,
        layer_norm_eps=1e-5,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    torch.manual_seed(1)
    model = transformers.EsmModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path)
    found = weights.describe("m", tmp_path).architecture
    assert replace(found, lm_head=False, contact_head=False) == Architecture(
        "ESM-1b", 2, 32, 4, 64, token_dropout=True, max_residues=1022, lm_head=False, contact_head=False
    )
    means = vectors(tmp_path, 2)[Output(2, "mean")]
    for row, sequence in enumerate(SEQUENCES):
        _, _, tokens = reference.ALPHABET.get_batch_converter()([("", sequence)])
        with torch.no_grad():
            states = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state
        np.testing.assert_allclose(means[row], states[0, 1:-1].mean(0).numpy(), atol=1e-5)


def test_a_descriptor_holds_the_hash_and_size_of_the_file_and_comes_back_from_json(tmp_path: Path) -> None:
    path = tmp_path / "any.pt"
    reference.tiny_esm2(path)
    descriptor = weights.describe("m", path)
    assert descriptor.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (descriptor.name, descriptor.files) == ("m", [str(path)])
    descriptor.save(tmp_path / "m.json")
    assert Descriptor.load(tmp_path / "m.json") == descriptor


def test_the_hash_of_a_sharded_directory_tells_of_each_shard(tmp_path: Path, esm2_8m: Path) -> None:
    path = hf_shards(tmp_path, esm2_8m)
    before = weights.describe("m", path)
    assert [Path(file).name for file in before.files] == [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    assert [size for size, _ in before.stamp] == [Path(file).stat().st_size for file in before.files]
    assert weights.describe("m", path).sha256 == before.sha256
    last = bytearray(Path(before.files[-1]).read_bytes())
    last[-1] ^= 1
    Path(before.files[-1]).write_bytes(last)
    assert weights.describe("m", path).sha256 != before.sha256


def as_pt(path: Path) -> None:
    reference.tiny_esm2(path)


def as_old_pt(path: Path) -> None:
    reference.tiny_esm1b(path)
    old_format(path)


def as_bin(path: Path) -> None:
    reference.tiny_esm2(path)
    plain_state(path)


def as_safetensors(path: Path) -> None:
    source = path.with_name("source.pt")
    reference.tiny_esm2(source)
    save_file({name: t.clone() for name, t in torch.load(source, weights_only=False)["model"].items()}, path)
    source.unlink()


@pytest.mark.parametrize("share", [0.0, 0.00001, 0.00003, 0.001, 0.01, 0.2, 0.5, 0.9, 0.999, 0.999999])
@pytest.mark.parametrize("make", [as_pt, as_old_pt, as_bin, as_safetensors], ids=lambda make: make.__name__)
def test_a_file_cut_short_is_refused_by_name(tmp_path: Path, make: Callable[[Path], None], share: float) -> None:
    path = tmp_path / "cut.weights"
    make(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    assert "cut.weights" in refusal(path)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"some text\n", id="text"),
        pytest.param(b">sp|P1|A protein\nMKV\n", id="FASTA"),
        pytest.param(b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>\n", id="HTML"),
        pytest.param(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 31\n", id="git LFS pointer"),
        pytest.param(b'{"a": 1, {', id="JSON"),
        pytest.param(b"12345678{not a header", id="like safetensors"),
        pytest.param(b"PK\x03\x04" + bytes(200), id="like zip"),
        pytest.param(bytes(4096), id="zeros"),
        pytest.param(np.random.default_rng(1).bytes(4096), id="noise"),
        pytest.param(b"\x80\x02" + bytes(64), id="like pickle"),
        pytest.param(pickle.dumps([1, 2], protocol=2), id="pickled list"),
    ],
)
def test_a_file_that_holds_no_weights_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "some.pt").write_bytes(content)
    assert "some.pt" in refusal(tmp_path / "some.pt")


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".safetensors", ""])
@pytest.mark.parametrize("make", [as_pt, as_old_pt, as_safetensors], ids=lambda make: make.__name__)
def test_a_layout_is_told_by_content_not_by_name(tmp_path: Path, make: Callable[[Path], None], suffix: str) -> None:
    make(tmp_path / "made")
    path = (tmp_path / "made").rename(tmp_path / f"renamed{suffix}")
    assert weights.describe("m", path).architecture.embed_dim in (32, 48)


class Malice:
    """On being unpickled, it makes a directory."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("kind", ["torch", "old torch", "pickle", "beside weights"])
def test_code_in_a_pickle_is_not_executed(tmp_path: Path, kind: str) -> None:
    trace, path = tmp_path / "executed", tmp_path / "evil.pt"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Malice(trace), protocol=2))
    elif kind == "beside weights":
        reference.tiny_esm2(path)
        torch.save(torch.load(path, weights_only=False) | {"args": Malice(trace)}, path)
    else:
        torch.save({"model": Malice(trace)}, path, _use_new_zipfile_serialization=kind == "torch")
    assert "evil.pt" in refusal(path)
    assert not trace.exists()
    pickle.loads(path.read_bytes()) if kind == "pickle" else torch.load(path, weights_only=False)
    assert trace.exists(), "this file would have done no harm at all"


def linear() -> object:
    return torch.nn.Linear(3, 4).state_dict()


def esm1() -> object:
    alphabet = reference.esm.Alphabet.from_architecture("protein_bert_base")
    settings = Namespace(
        arch="protein_bert_base", layers=1, embed_dim=16, ffn_embed_dim=32, attention_heads=2, final_bias=True
    )
    state = ProteinBertModel(settings, alphabet).state_dict()
    return {"args": settings, "model": {f"decoder.sentence_encoder.{name}": part for name, part in state.items()}}


def msa_transformer() -> object:
    alphabet = reference.esm.Alphabet.from_architecture("msa_transformer")
    settings = Namespace(
        arch="msa_transformer",
        layers=1,
        embed_dim=16,
        ffn_embed_dim=32,
        attention_heads=2,
        dropout=0.1,
        attention_dropout=0.1,
        activation_dropout=0.1,
        max_tokens=64,
        max_positions=64,
        embed_positions_msa=True,
    )
    state = MSATransformer(settings, alphabet).state_dict()
    return {"args": settings, "model": {f"encoder.sentence_encoder.{name}": part for name, part in state.items()}}


def without_one_bias() -> object:
    file = io.BytesIO()
    reference.tiny_esm2(file)  # type: ignore[arg-type]
    file.seek(0)
    content = torch.load(file, weights_only=False)
    del content["model"]["encoder.sentence_encoder.layers.1.fc2.bias"]
    return content


UNSUPPORTED: list[tuple[Callable[[], object], str]] = [
    (linear, "weight"),
    (esm1, "decoder.sentence_encoder"),
    (msa_transformer, "layers.0"),
    (without_one_bias, "layers.1.fc2.bias"),
    (dict, "embed_tokens"),
    (lambda: {"epoch": 3, "optimizer": {"lr": 0.1}}, "optimizer"),
    (lambda: {"model": {"a": 1}}, "model"),
    (lambda: {0: torch.zeros(2), 1: torch.zeros(2)}, "0"),
    (lambda: [torch.zeros(2)], "list"),
    (lambda: torch.zeros(2), "Tensor"),
]


@pytest.mark.parametrize(
    ("make", "found"), UNSUPPORTED, ids=[f"{number}-{make.__name__}" for number, (make, _) in enumerate(UNSUPPORTED)]
)
def test_another_kind_of_model_is_refused_with_what_was_found(
    tmp_path: Path, make: Callable[[], object], found: str
) -> None:
    torch.save(make(), tmp_path / "other.pt")
    text = refusal(tmp_path / "other.pt")
    assert "other.pt" in text
    assert found in text.replace(str(tmp_path), "")


def test_an_unsupported_safetensors_file_is_refused_with_what_was_found(tmp_path: Path) -> None:
    save_file({"bert.embeddings.word_embeddings.weight": torch.zeros(30, 8)}, tmp_path / "prot_bert.safetensors")
    text = refusal(tmp_path / "prot_bert.safetensors")
    assert "prot_bert.safetensors" in text
    assert "bert.embeddings" in text


def test_absent_weights_and_an_empty_directory_are_refused(tmp_path: Path) -> None:
    assert str(tmp_path / "absent.pt") in refusal(tmp_path / "absent.pt")
    assert str(tmp_path) in refusal(tmp_path)


def test_a_directory_that_lacks_a_shard_is_refused_by_its_name(tmp_path: Path, esm2_8m: Path) -> None:
    path = hf_shards(tmp_path, esm2_8m)
    (path / "model-00002-of-00003.safetensors").unlink()
    assert "model-00002-of-00003.safetensors" in refusal(path)


@pytest.mark.parametrize("content", ["", '{"weight_map": {"a": ', "{}", "[]"])
def test_a_damaged_index_is_refused_by_name(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    assert "model.safetensors.index.json" in refusal(tmp_path)


@pytest.mark.parametrize("content", ["", '{"num_attention_heads": '])
def test_a_damaged_config_beside_the_weights_is_refused_by_name(tmp_path: Path, content: str) -> None:
    as_safetensors(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(content)
    assert "config.json" in refusal(tmp_path)

"""The engine against fair-esm's own forward pass: every layer and representation, layout and kind of pack."""

import argparse
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import esm
import numpy as np
import pytest
import random_residues
import reference
import torch
from esmflow.engine.engine import Engine
from esmflow.engine.task import Embedded
from esmflow.model import weights
from esmflow.model.trunk import Esm
from esmflow.representation import RAGGED, VECTORS, Output
from esmflow.treatment import WHOLE, Treatment
from safetensors.torch import save_file
from workflow import FULL_SIZE

RELATIVE, ABSOLUTE = 1e-5, 1e-4
residues = partial(random_residues.residues, letters=random_residues.ALL_LETTERS)
Expected = dict[tuple[int, str], np.ndarray]


def every_output(layers: int, *more: str) -> list[Output]:
    of_layers = [Output(layer, name) for layer in range(layers + 1) for name in VECTORS]
    if "per_tok" in more:
        of_layers += [Output(layer, "per_tok") for layer in range(layers + 1)]
    return of_layers + [Output(layers, name) for name in more if name != "per_tok"]


def engine(path: Path, **options: int) -> Engine:
    return Engine(Esm(weights.read(weights.weight_files(path)), torch.device("cpu")), **options)


def assert_equal(found: Embedded, expected: Sequence[Expected], outputs: Sequence[Output]) -> None:
    assert found.reasons == [None] * len(expected)
    for row, own in enumerate(expected):
        for output in outputs:
            difference = found.values[output][row] - own[output]
            assert difference.shape == own[output].shape
            if output.representation in ("logits", "contacts"):
                assert np.abs(difference).max() <= ABSOLUTE, (output, row)
            else:
                # The std of a single residue is 0; its error is then measured against the representation's size.
                scale = np.linalg.norm(own[output]) or np.linalg.norm(own[output.layer, "mean"])
                assert np.linalg.norm(difference) <= RELATIVE * scale, (output, row)


@dataclass(frozen=True)
class Tiny:
    """A random checkpoint in fair-esm's format, and the model that fair-esm makes of it."""

    path: Path
    model: torch.nn.Module
    expected: list[Expected]
    """Every representation of SEQUENCES."""

    @property
    def heads(self) -> int:
        return self.model.layers[0].self_attn.num_heads

    @property
    def outputs(self) -> list[Output]:
        return every_output(self.model.num_layers, *RAGGED[: 2 if "esm1v" in self.path.name else 3])


SEQUENCES = ["M", "MK", "XBZUO", residues(34), residues(140), residues(1022)]


@pytest.fixture(scope="module", params=["esm2_tiny", "esm1b_tiny", "esm1v_tiny"])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    path = tmp_path_factory.mktemp("tiny") / f"{request.param}.pt"
    if request.param == "esm2_tiny":
        reference.tiny_esm2(path, heads=2)
    else:
        reference.tiny_esm1b(path, layers=3, norm_before=request.param == "esm1b_tiny")
    beside = reference.move_contact_head(path)
    with torch.serialization.safe_globals([argparse.Namespace]):
        if request.param == "esm1v_tiny":
            beside.unlink()
            with pytest.warns(UserWarning, match="Regression weights not found"):
                model, _ = esm.pretrained.load_model_and_alphabet(str(path))
        else:
            model, _ = esm.pretrained.load_model_and_alphabet(str(path))
    model.eval()
    return Tiny(path, model, [reference.represent_fully(model, sequence) for sequence in SEQUENCES])


def fair_esm(source: Tiny, _directory: Path) -> Path:
    return source.path


def safetensors(source: Tiny, directory: Path) -> Path:
    save_file(state_of(source), directory / "model.safetensors")
    return directory / "model.safetensors"


def hugging_face_bin(source: Tiny, directory: Path) -> Path:
    torch.save(hugging_face(source), directory / "pytorch_model.bin")
    (directory / "config.json").write_text(json.dumps({"num_attention_heads": source.heads}))
    return directory / "pytorch_model.bin"


def hugging_face_directory(source: Tiny, directory: Path) -> Path:
    save_file(hugging_face(source), directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps({"num_attention_heads": source.heads}))
    return directory


def state_of(source: Tiny) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in source.model.state_dict().items() if "_float_" not in name}


def hugging_face(source: Tiny) -> dict[str, torch.Tensor]:
    names = reference.hugging_face_names(source.model.num_layers)
    return {names[name]: tensor for name, tensor in state_of(source).items()}


@pytest.mark.parametrize("layout", [fair_esm, safetensors, hugging_face_bin, hugging_face_directory])
def test_every_representation_through_every_layout(
    tmp_path: Path, tiny: Tiny, layout: Callable[[Tiny, Path], Path]
) -> None:
    found = engine(layout(tiny, tmp_path), threads=2).embed([s.encode() for s in SEQUENCES], tiny.outputs)
    assert_equal(found, tiny.expected, tiny.outputs)


@pytest.mark.parametrize("length", [1023, 3000])
def test_longer_than_1022_residues(tiny: Tiny, length: int) -> None:
    """In windows, and for rotary positions at full length."""
    sequence = residues(length)
    outputs = every_output(tiny.model.num_layers, "per_tok")
    embed = engine(tiny.path, threads=2).embed
    windows = reference.represent_windows(tiny.model, sequence, 1022, 256)
    assert_equal(embed([sequence.encode()], outputs, Treatment.parse("window-1022-256")), [windows], outputs)
    if tiny.path.stem == "esm2_tiny":
        outputs += [Output(3, "logits")]
        full = reference.represent_fully(tiny.model, sequence, contacts=False)
        assert_equal(embed([sequence.encode()], outputs, WHOLE), [full], outputs)


PACKS = {
    "one": [residues(300)],
    "many equal": [residues(40, seed % 15) for seed in range(60)],
    "500 tiny": [residues(1 + seed % 3, seed % 16) for seed in range(500)],
}


@pytest.mark.parametrize("pack", PACKS)
def test_packs_of_one_of_many_equal_and_of_500_tiny(tiny: Tiny, pack: str) -> None:
    sequences = PACKS[pack]
    outputs = every_output(tiny.model.num_layers)
    packing = engine(tiny.path, tokens_per_pack=4096)
    found = packing.embed([sequence.encode() for sequence in sequences], outputs)
    assert packing.figures.packs == 1
    expected = {sequence: reference.represent(tiny.model, sequence) for sequence in set(sequences)}
    assert_equal(found, [expected[sequence] for sequence in sequences], outputs)


@pytest.fixture(scope="module")
def learned(esm2_8m: Path) -> torch.nn.Module:
    return reference.esm2_of_hugging_face(esm2_8m)


def test_learned_esm2_8m_on_many_real_proteins(esm2_8m: Path, learned: torch.nn.Module, uniprot: list[str]) -> None:
    count, longest = (200, 150) if FULL_SIZE else (60, 100)
    sequences = [sequence[:longest] for sequence in random.Random(200).sample(uniprot, count)]
    found = engine(esm2_8m, threads=2).embed([sequence.encode() for sequence in sequences], every_output(6))
    assert_equal(found, [reference.represent(learned, sequence) for sequence in sequences], every_output(6))


def test_learned_esm2_8m_in_every_representation(esm2_8m: Path, learned: torch.nn.Module, uniprot: list[str]) -> None:
    """But for logits, for which its file has no head."""
    sequences = ["M", "XBZUO", *(sequence[:250] for sequence in random.Random(5).sample(uniprot, 4))]
    outputs = every_output(6, "per_tok", "contacts")
    found = engine(esm2_8m, tokens_per_pack=2048, threads=2).embed([s.encode() for s in sequences], outputs)
    assert_equal(found, [reference.represent_fully(learned, sequence) for sequence in sequences], outputs)


@pytest.mark.parametrize("length", [1022, 1023])
def test_learned_esm2_8m_about_its_longest_sequence(esm2_8m: Path, learned: torch.nn.Module, length: int) -> None:
    outputs = every_output(6, "per_tok")
    found = engine(esm2_8m).embed([residues(length).encode()], outputs)
    assert_equal(found, [reference.represent_fully(learned, residues(length), contacts=False)], outputs)


def test_std_of_residues_that_are_all_alike_is_zero(tmp_path: Path) -> None:
    reference.tiny_esm2(tmp_path / "tiny.pt")
    [[std]] = engine(tmp_path / "tiny.pt").embed([b"W" * 1022], [Output(0, "std")]).values.values()
    assert np.abs(std).max() < 1e-6


def test_a_vector_is_the_same_alone_and_in_any_pack(esm2_8m: Path, uniprot: list[str]) -> None:
    sequences = [s[:100].encode() for s in random.Random(3).sample(uniprot, 10)] + [b"M", b"MKV"] * 5
    outputs = every_output(6)
    alone = engine(esm2_8m)
    single = [
        {output: values[0] for output, values in alone.embed([sequence], outputs).values.items()}
        for sequence in sequences
    ]
    for tokens_per_pack in (3, 128, 700, 100_000):
        packed = engine(esm2_8m, tokens_per_pack=tokens_per_pack, threads=2).embed(sequences, outputs)
        assert_equal(packed, single, outputs)

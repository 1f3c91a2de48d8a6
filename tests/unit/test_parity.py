"""The engine against fair-esm's own forward pass."""

import random
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from esmflow import weights
from esmflow.engine import Engine
from esmflow.model import Esm
from esmflow.spec import Output

TOLERANCE = 1e-5


def every_output(layers: int) -> list[Output]:
    return [Output(layer, name) for layer in range(layers + 1) for name in reference.REPRESENTATIONS]


def embed(path: Path, sequences: list[str], outputs: list[Output], **options: int) -> dict[Output, np.ndarray]:
    engine = Engine(Esm(weights.read(weights.weight_files(path)), torch.device("cpu")), **options)
    embedded = engine.embed([sequence.encode() for sequence in sequences], outputs)
    assert not any(embedded.reasons)
    return embedded.values


def worst_error(path: Path, model: torch.nn.Module, sequences: list[str]) -> float:
    outputs = every_output(model.num_layers)
    found = embed(path, sequences, outputs, threads=2)
    errors = []
    for row, sequence in enumerate(sequences):
        expected = reference.represent(model, sequence)
        for output in outputs:
            # The std of a single residue is 0; its error is then measured against the representation's size.
            scale = np.linalg.norm(expected[output]) or np.linalg.norm(expected[output.layer, "mean"])
            errors.append(np.linalg.norm(found[output][row] - expected[output]) / scale)
    return float(max(errors))


def test_learned_esm2_8m_equals_fair_esm_on_200_real_proteins(esm2_8m: Path, uniprot: list[str]) -> None:
    sequences = [sequence[:1022] for sequence in random.Random(200).sample(uniprot, 200)]
    assert worst_error(esm2_8m, reference.esm2_of_hugging_face(esm2_8m), sequences) <= TOLERANCE


SMALL = [
    "M",
    "MK",
    "MKTAYIAKQRQISFVKSHFSRQ",
    "XBZUOX",
    ("ACDEFGHIKLMNPQRSTVWY" * 52)[:1022],
    "ACDEFGHIKLMNPQRSTVWY" * 7,
]


def test_tiny_esm2_in_fair_esm_format(tmp_path: Path) -> None:
    model = reference.tiny_esm2(tmp_path / "tiny.pt", heads=6)
    assert worst_error(tmp_path / "tiny.pt", model, SMALL) <= TOLERANCE


@pytest.mark.parametrize("norm_before", [True, False])
def test_tiny_esm1b_in_fair_esm_format(tmp_path: Path, norm_before: bool) -> None:
    model = reference.tiny_esm1b(tmp_path / "tiny.pt", norm_before=norm_before)
    assert worst_error(tmp_path / "tiny.pt", model, SMALL) <= TOLERANCE


def test_std_of_residues_that_are_all_alike_is_zero(tmp_path: Path) -> None:
    reference.tiny_esm2(tmp_path / "tiny.pt")
    [std] = embed(tmp_path / "tiny.pt", ["W" * 1022], [Output(0, "std")]).values()
    assert np.abs(std).max() < 1e-6


def test_a_vector_is_the_same_alone_and_in_any_pack(esm2_8m: Path, uniprot: list[str]) -> None:
    sequences = [sequence[:300] for sequence in random.Random(3).sample(uniprot, 25)] + ["M", "MKV"] * 5
    outputs = every_output(6)
    alone = [embed(esm2_8m, [sequence], outputs) for sequence in sequences]
    for tokens_per_pack in (3, 128, 700, 100_000):
        packed = embed(esm2_8m, sequences, outputs, tokens_per_pack=tokens_per_pack, threads=2)
        for output in outputs:
            for row, single in enumerate(alone):
                difference = np.linalg.norm(packed[output][row] - single[output][0])
                assert difference <= TOLERANCE * np.linalg.norm(single[output][0])

"""Residues, logits and contacts against fair-esm."""

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

SEQUENCES = ["M", "MK", "XBZUO", "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ", ("ACDEFGHIKLMNPQRSTVWY" * 12)[:230]]


@torch.no_grad()
def expected(model: torch.nn.Module, sequence: str) -> dict[str, np.ndarray]:
    _, _, tokens = reference.ALPHABET.get_batch_converter()([("", sequence)])
    result = model(tokens, repr_layers=range(model.num_layers + 1), return_contacts=True)
    layers = {f"layer{layer}.per_tok": x[0, 1:-1].numpy() for layer, x in result["representations"].items()}
    last = model.num_layers
    return layers | {
        f"layer{last}.logits": result["logits"][0, 1:-1].numpy(),
        f"layer{last}.contacts": result["contacts"][0].numpy(),
    }


def outputs(layers: int, *more: str) -> list[Output]:
    return [Output(layer, "per_tok") for layer in range(layers + 1)] + [Output(layers, name) for name in more]


@pytest.mark.parametrize("make", [reference.tiny_esm2, reference.tiny_esm1b])
def test_tiny_models_equal_fair_esm(tmp_path: Path, make) -> None:
    model = make(tmp_path / "tiny.pt")
    wanted = outputs(model.num_layers, "logits", "contacts")
    engine = Engine(Esm(weights.read([tmp_path / "tiny.pt"]), torch.device("cpu")), tokens_per_pack=200, threads=2)
    found = engine.embed([sequence.encode() for sequence in SEQUENCES], wanted).values
    for row, sequence in enumerate(SEQUENCES):
        reference_values = expected(model, sequence)
        for output in wanted:
            value = reference_values[str(output)]
            assert found[output][row].shape == value.shape
            assert np.abs(found[output][row] - value).max() <= 1e-4, output
            if output.representation == "per_tok":
                assert np.linalg.norm(found[output][row] - value) <= 1e-5 * np.linalg.norm(value), output


def test_learned_contacts_and_residues_equal_fair_esm(esm2_8m: Path, uniprot: list[str]) -> None:
    model = reference.esm2_of_hugging_face(esm2_8m)
    sequences = [sequence[:400] for sequence in random.Random(5).sample(uniprot, 5)]
    wanted = outputs(6, "contacts")
    engine = Engine(Esm(weights.read([esm2_8m]), torch.device("cpu")), tokens_per_pack=2048, threads=2)
    found = engine.embed([sequence.encode() for sequence in sequences], wanted).values
    for row, sequence in enumerate(sequences):
        reference_values = expected(model, sequence)
        contacts = reference_values["layer6.contacts"]
        assert np.abs(found[Output(6, "contacts")][row] - contacts).max() <= 1e-4
        for output in outputs(6):
            value = reference_values[str(output)]
            assert np.linalg.norm(found[output][row] - value) <= 1e-5 * np.linalg.norm(value), output


def test_windows_of_residues_are_stitched(tmp_path: Path) -> None:
    reference.tiny_esm2(tmp_path / "tiny.pt")
    engine = Engine(Esm(weights.read([tmp_path / "tiny.pt"]), torch.device("cpu")), tokens_per_pack=2048)
    sequence = ("ACDEFGHIKLMNPQRSTVWY" * 7).encode()
    wanted = [Output(3, "per_tok"), Output(3, "logits"), Output(3, "mean")]
    found = engine.embed([sequence], wanted, "window-50-20").values
    assert found[wanted[0]][0].shape == (140, 48)
    assert found[wanted[1]][0].shape == (140, 33)
    mean = found[wanted[0]][0].astype(np.float64).mean(axis=0)
    assert np.linalg.norm(found[wanted[2]][0] - mean) <= 1e-5 * np.linalg.norm(mean)
    first = engine.embed([sequence[:50]], wanted[:1]).values[wanted[0]][0]
    assert np.allclose(found[wanted[0]][0][:30], first[:30], atol=1e-5)

"""Sequences longer than a model's maximum: windows, truncation and full length against fair-esm."""

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from esmflow import weights
from esmflow.descriptor import Architecture
from esmflow.engine import Engine
from esmflow.errors import ConfigError
from esmflow.model import Esm
from esmflow.spec import ModelSpec, Output
from esmflow.treatment import cost, flag, pieces

TOLERANCE = 1e-5


def random_sequence(length: int, seed: int = 0) -> str:
    return "".join(random.Random(seed).choices("ACDEFGHIKLMNPQRSTVWY", k=length))


@torch.no_grad()
def stitched(model: torch.nn.Module, sequence: str, size: int, overlap: int) -> dict[tuple[int, str], np.ndarray]:
    """The plain way: every window alone, each residue from the window in which it is furthest from an edge."""
    starts = [*range(0, len(sequence) - size, size - overlap), len(sequence) - size]
    runs = [reference.all_layers(model, sequence[start : start + size]) for start in starts]
    result = {}
    for layer in range(model.num_layers + 1):
        rows = []
        for residue in range(len(sequence)):
            depth = [min(residue - start, start + size - 1 - residue) for start in starts]
            best = depth.index(max(depth))
            rows.append(runs[best][layer][1 + residue - starts[best]])
        x = torch.stack(rows).double()
        result[layer, "mean"] = x.mean(0).numpy()
        result[layer, "std"] = x.std(0, correction=0).numpy()
        result[layer, "max"] = x.max(0).values.numpy()
        result[layer, "bos"] = torch.stack([run[layer][0] for run in runs]).double().mean(0).numpy()
    return result


def engine(path: Path) -> Engine:
    return Engine(Esm(weights.read([path]), torch.device("cpu")), tokens_per_pack=2048, threads=2)


def outputs(layers: int) -> list[Output]:
    return [Output(layer, name) for layer in range(layers + 1) for name in reference.REPRESENTATIONS]


@pytest.mark.parametrize(("length", "size", "overlap"), [(51, 50, 20), (80, 50, 20), (77, 30, 29), (200, 50, 0)])
def test_windows_equal_the_plain_way_over_fair_esm(tmp_path: Path, length: int, size: int, overlap: int) -> None:
    model = reference.tiny_esm2(tmp_path / "tiny.pt")
    sequences = [random_sequence(length), random_sequence(size), random_sequence(length + 33, seed=1)]
    embedded = engine(tmp_path / "tiny.pt").embed(
        [sequence.encode() for sequence in sequences], outputs(3), f"window-{size}-{overlap}"
    )
    for row in (0, 2):
        expected = stitched(model, sequences[row], size, overlap)
        for output in outputs(3):
            error = np.linalg.norm(embedded.values[output][row] - expected[output])
            assert error <= TOLERANCE * np.linalg.norm(expected[output]), output
    fits = reference.represent(model, sequences[1])
    for output in outputs(3):
        assert np.linalg.norm(embedded.values[output][1] - fits[output]) <= TOLERANCE * np.linalg.norm(fits[output])


def test_std_alone_over_windows_equals_std_with_mean(tmp_path: Path) -> None:
    reference.tiny_esm2(tmp_path / "tiny.pt")
    sequence = [random_sequence(120).encode()]
    alone = engine(tmp_path / "tiny.pt").embed(sequence, [Output(3, "std")], "window-50-20").values
    both = engine(tmp_path / "tiny.pt").embed(sequence, outputs(3), "window-50-20").values
    assert list(alone) == [Output(3, "std")]
    assert np.allclose(alone[Output(3, "std")], both[Output(3, "std")], rtol=1e-6)


def test_full_length_equals_fair_esm_without_truncation(esm2_8m: Path) -> None:
    sequence = random_sequence(1500)
    expected = reference.represent(reference.esm2_of_hugging_face(esm2_8m), sequence)
    found = engine(esm2_8m).embed([sequence.encode()], outputs(6)).values
    for output in outputs(6):
        error = np.linalg.norm(found[output][0] - expected[output])
        assert error <= TOLERANCE * np.linalg.norm(expected[output]), output


def test_truncation_embeds_the_first_residues(tmp_path: Path) -> None:
    reference.tiny_esm2(tmp_path / "tiny.pt")
    sequence = random_sequence(90).encode()
    long = engine(tmp_path / "tiny.pt").embed([sequence], outputs(3), "truncate-40").values
    short = engine(tmp_path / "tiny.pt").embed([sequence[:40]], outputs(3)).values
    assert all(np.allclose(long[output], short[output], rtol=1e-6) for output in outputs(3))


@pytest.mark.parametrize("treatment", ["whole", "truncate-30", "window-30-10", "window-30-29", "window-7-0"])
@pytest.mark.parametrize("length", [1, 29, 30, 31, 32, 50, 51, 333])
def test_pieces_keep_every_residue_once_and_cost_what_they_take(tmp_path: Path, treatment: str, length: int) -> None:
    reference.tiny_esm2(tmp_path / "tiny.pt")
    shape = weights.read([tmp_path / "tiny.pt"]).architecture
    parts = pieces(length, treatment)
    kept = [residue for piece in parts for residue in range(piece.keep_start, piece.keep_stop)]
    assert kept == list(range(min(length, 30) if treatment.startswith("truncate") else length))
    assert all(p.start <= p.keep_start < p.keep_stop <= p.stop <= length for p in parts)
    each = sum(shape.flops(np.array([piece.stop - piece.start + 2]), 3).item() for piece in parts)
    assert cost(shape, np.array([length]), treatment, 3).item() == pytest.approx(each)
    said = flag(length, treatment)
    assert said == (f"windowed:{len(parts)}" if len(parts) > 1 else "truncated:30" if len(kept) < length else None)


def test_titin_goes_through_windows_in_little_memory(esm2_8m: Path) -> None:
    code = """
import resource, sys
from pathlib import Path
import torch
from esmflow import weights
from esmflow.descriptor import Architecture
from esmflow.engine import Engine
from esmflow.model import Esm
from esmflow.spec import Output
engine = Engine(Esm(weights.read([Path(sys.argv[1])]), torch.device("cpu")), threads=1)
engine.embed([b"MKV" * 10], [Output(6, "mean")])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
engine.embed([b"ACDEFGHIKLMNPQRSTVWY" * 1800], [Output(6, "mean")], "window-1022-256")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    scripts = Path(__file__).parents[2] / "scripts"
    result = subprocess.run(
        [sys.executable, "-c", code, esm2_8m],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(scripts)},
    )
    assert int(result.stdout) < 150_000


SPEC = {
    "layers": [-1],
    "representations": ["mean"],
    "long_sequences": "window",
    "max_length": 1022,
    "window_overlap": 256,
    "precision": "auto",
}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"long_sequences": "full"}, "full"),
        ({"max_length": 1023}, "1022"),
        ({"window_overlap": 1022}, "window_overlap"),
        ({"representations": ["contacts"]}, "windows"),
        ({"representations": ["contacts"], "long_sequences": "skip"}, "no head for contacts"),
        ({"representations": ["logits"]}, "no head for logits"),
    ],
)
def test_what_a_model_cannot_do_is_bad_configuration(change: dict[str, object], named: str) -> None:
    shape = Architecture("ESM-1b", 2, 32, 4, 128, True, 1022, lm_head=False, contact_head=False)
    ModelSpec.of("esm1b", SPEC).check(shape)
    with pytest.raises(ConfigError, match=named):
        ModelSpec.of("esm1b", SPEC | change).check(shape)

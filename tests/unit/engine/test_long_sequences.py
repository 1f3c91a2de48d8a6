"""Sequences longer than a model's maximum: windows, truncation and full length against fair-esm."""

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from conftest import ROOT
from esmflow.architecture import Architecture
from esmflow.engine.engine import Engine
from esmflow.errors import ConfigError
from esmflow.model import weights
from esmflow.model.trunk import Esm
from esmflow.planned_model import Descriptor, ModelSpec, PlannedModel
from esmflow.representation import Output
from esmflow.treatment import Treatment
from hypothesis import given
from hypothesis import strategies as st
from workflow import FULL_SIZE

TOLERANCE = 1e-5


def random_sequence(length: int, seed: int = 0) -> str:
    return "".join(random.Random(seed).choices("ACDEFGHIKLMNPQRSTVWY", k=length))


def engine(path: Path) -> Engine:
    return Engine(Esm(weights.read([path]), torch.device("cpu")), tokens_per_pack=2048, threads=2)


def outputs(layers: int) -> list[Output]:
    return [Output(layer, name) for layer in range(layers + 1) for name in reference.REPRESENTATIONS]


@pytest.mark.parametrize(("length", "size", "overlap"), [(51, 50, 20), (80, 50, 20), (77, 30, 29), (200, 50, 0)])
def test_windows_equal_the_plain_way_over_fair_esm(tmp_path: Path, length: int, size: int, overlap: int) -> None:
    model = reference.tiny_esm2(tmp_path / "tiny.pt")
    sequences = [random_sequence(length), random_sequence(size), random_sequence(length + 33, seed=1)]
    embedded = engine(tmp_path / "tiny.pt").embed(
        [sequence.encode() for sequence in sequences], outputs(3), Treatment("window", size, overlap)
    )
    for row in (0, 2):
        expected = reference.represent_windows(model, sequences[row], size, overlap)
        for output in outputs(3):
            error = np.linalg.norm(embedded.values[output][row] - expected[output])
            assert error <= TOLERANCE * np.linalg.norm(expected[output]), output
    fits = reference.represent(model, sequences[1])
    for output in outputs(3):
        assert np.linalg.norm(embedded.values[output][1] - fits[output]) <= TOLERANCE * np.linalg.norm(fits[output])


def test_std_alone_over_windows_equals_std_with_mean(tmp_path: Path) -> None:
    reference.tiny_esm2(tmp_path / "tiny.pt")
    sequence = [random_sequence(120).encode()]
    alone = engine(tmp_path / "tiny.pt").embed(sequence, [Output(3, "std")], Treatment.parse("window-50-20")).values
    both = engine(tmp_path / "tiny.pt").embed(sequence, outputs(3), Treatment.parse("window-50-20")).values
    assert list(alone) == [Output(3, "std")]
    assert np.allclose(alone[Output(3, "std")], both[Output(3, "std")], rtol=1e-6)


def test_truncation_embeds_the_first_residues(tmp_path: Path) -> None:
    reference.tiny_esm2(tmp_path / "tiny.pt")
    sequence = random_sequence(90).encode()
    long = engine(tmp_path / "tiny.pt").embed([sequence], outputs(3), Treatment.parse("truncate-40")).values
    short = engine(tmp_path / "tiny.pt").embed([sequence[:40]], outputs(3)).values
    assert all(np.allclose(long[output], short[output], rtol=1e-6) for output in outputs(3))


@pytest.mark.parametrize("name", ["whole", "truncate-30", "window-30-10", "window-30-29", "window-7-0"])
@pytest.mark.parametrize("length", [1, 29, 30, 31, 32, 50, 51, 333])
def test_pieces_keep_every_residue_once_and_cost_what_they_take(tmp_path: Path, name: str, length: int) -> None:
    treatment = Treatment.parse(name)
    assert str(treatment) == name
    reference.tiny_esm2(tmp_path / "tiny.pt")
    shape = weights.read([tmp_path / "tiny.pt"]).architecture
    parts = treatment.pieces(length)
    kept = [residue for piece in parts for residue in range(piece.keep_start, piece.keep_stop)]
    assert kept == list(range(min(length, 30) if name.startswith("truncate") else length))
    assert all(p.start <= p.keep_start < p.keep_stop <= p.stop <= length for p in parts)
    each = sum(shape.flops(np.array([piece.stop - piece.start + 2]), 3).item() for piece in parts)
    assert treatment.cost(shape, np.array([length]), 3).item() == pytest.approx(each)
    said = treatment.flag(length)
    assert said == (f"windowed:{len(parts)}" if len(parts) > 1 else "truncated:30" if len(kept) < length else None)


@given(
    lengths=st.lists(st.integers(1, 200), max_size=20), name=st.sampled_from(["whole", "truncate-30", "window-30-10"])
)
def test_pieces_of_many_sequences_are_those_of_each(lengths: list[int], name: str) -> None:
    treatment = Treatment.parse(name)
    rows, bounds = treatment.all_pieces(np.array(lengths, dtype=np.int64))
    expected = [(row, piece) for row, length in enumerate(lengths) for piece in treatment.pieces(length)]
    assert [(row, tuple(piece)) for row, piece in zip(rows.tolist(), bounds.tolist(), strict=True)] == expected


def test_windows_of_residues_are_stitched(tmp_path: Path) -> None:
    reference.tiny_esm2(tmp_path / "tiny.pt")
    engine = Engine(Esm(weights.read([tmp_path / "tiny.pt"]), torch.device("cpu")), tokens_per_pack=2048)
    sequence = ("ACDEFGHIKLMNPQRSTVWY" * 7).encode()
    wanted = [Output(3, "per_tok"), Output(3, "logits"), Output(3, "mean")]
    found = engine.embed([sequence], wanted, Treatment.parse("window-50-20")).values
    assert found[wanted[0]][0].shape == (140, 48)
    assert found[wanted[1]][0].shape == (140, 33)
    mean = found[wanted[0]][0].astype(np.float64).mean(axis=0)
    assert np.linalg.norm(found[wanted[2]][0] - mean) <= 1e-5 * np.linalg.norm(mean)
    first = engine.embed([sequence[:50]], wanted[:1]).values[wanted[0]][0]
    assert np.allclose(found[wanted[0]][0][:30], first[:30], atol=1e-5)


#: Residues, at full size as many as titin has, and the kilobytes that they may take; whole they take 16 each.
VERY_LONG, MOST = (36_000, 150_000) if FULL_SIZE else (8_000, 50_000)


def test_a_protein_like_titin_goes_through_windows_in_little_memory(tmp_path: Path) -> None:
    reference.tiny_esm2(tmp_path / "wide.pt", layers=1, embed_dim=320)
    code = """
import resource, sys
from pathlib import Path
import torch
from esmflow.model import weights
from esmflow.engine.engine import Engine
from esmflow.model.trunk import Esm
from esmflow.representation import Output
from esmflow.treatment import Treatment
engine = Engine(Esm(weights.read([Path(sys.argv[1])]), torch.device("cpu")), threads=1)
engine.embed([b"MKV" * 10], [Output(1, "mean")])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
sequence = b"ACDEFGHIKLMNPQRSTVWY" * (int(sys.argv[2]) // 20)
engine.embed([sequence], [Output(1, "mean")], Treatment.parse("window-1022-256"))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    scripts = ROOT / "scripts"
    # A small process in between: a child's peak begins at the size of the process that started it.
    start = "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))"
    result = subprocess.run(
        [sys.executable, "-S", "-c", start, sys.executable, "-c", code, tmp_path / "wide.pt", str(VERY_LONG)],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(scripts)},
    )
    assert int(result.stdout) < MOST


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
        ({"representations": ["contacts"], "long_sequences": "skip"}, "no head for contacts"),
        ({"representations": ["logits"]}, "no head for logits"),
        ({"representations": ["entropy"]}, "no head for entropy"),
        ({"representations": ["mean", "wt_marginals"]}, "no head for wt_marginals"),
    ],
)
def test_what_a_model_cannot_do_is_bad_configuration(change: dict[str, object], named: str) -> None:
    shape = Architecture("ESM-1b", 2, 32, 4, 128, True, 1022, lm_head=False, contact_head=False)
    descriptor = Descriptor("esm1b", [], [], "ab" * 32, shape)
    PlannedModel(ModelSpec.of("esm1b", SPEC), descriptor).check()
    with pytest.raises(ConfigError, match=named):
        PlannedModel(ModelSpec.of("esm1b", SPEC | change), descriptor).check()

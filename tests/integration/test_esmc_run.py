"""A run of ESM-C, from FASTA files to tables, residues and the report, against transformers' own module."""

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
import reference
import reference_esmc as esmc
import torch
from workflow import Vectors, Workspace, matrix, plain, relative_error

MAX_LENGTH, OVERLAP, LAYERS = 90, 20, 3
RAGGED = ["per_tok", "logits"]
LICENCE = "mit"


@dataclass(frozen=True)
class Run:
    """A run that has come to its end, what it was given, and its model."""

    work: Workspace
    sequences: dict[str, str]
    model: torch.nn.Module

    def expected(self, name: str, treatment: str) -> Vectors:
        """transformers' values of a sequence, which is cut or read in windows if it is too long."""
        sequence = self.sequences[name]
        if treatment == "windows" and len(sequence) > MAX_LENGTH:
            return reference.represent_windows(
                self.model, sequence, MAX_LENGTH, OVERLAP, layers_of=esmc.all_layers
            ) | reference.represent_windows(self.model, sequence, MAX_LENGTH, OVERLAP, layers_of=self._logits)
        return esmc.represent_fully(self.model, sequence[:MAX_LENGTH])

    def _logits(self, model: torch.nn.Module, sequence: str) -> dict[int, torch.Tensor]:
        """The logits of a window as if they were a layer."""
        tokens = esmc.TOKENIZER(sequence, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            return {-1: model(tokens).logits[0]}


@pytest.fixture(scope="module")
def run(uniprot: list[str], tmp_path_factory: pytest.TempPathFactory) -> Run:
    work = Workspace(tmp_path_factory.mktemp("esmc"))
    model = esmc.tiny_esmc(layers=LAYERS)
    (work.root / "weights").mkdir()
    esmc.write(work.root / "weights", model, "transformers")
    (work.root / "weights" / "README.md").write_text(f"---\nlicense: {LICENCE}\n---\n")
    chosen = [s for s in uniprot if len(s) <= MAX_LENGTH][:12] + [s for s in uniprot if 150 <= len(s) <= 300][:4]
    sequences = {f"p{number}": sequence for number, sequence in enumerate([*chosen, "M", "MXBZUOW"])}
    entries = [plain(name, sequence) for name, sequence in sequences.items()]
    work.write_samples([("a", work.write_fasta("a.fasta", entries))])
    settings = {"weights": "weights", "layers": [0, 2, -1], "max_length": MAX_LENGTH}
    work.write_config(
        {
            "windows": settings
            | {
                "representations": ["mean", "max", "std", "bos", *RAGGED],
                "long_sequences": "window",
                "window_overlap": OVERLAP,
            },
            "cut": settings | {"representations": ["mean", *RAGGED], "long_sequences": "truncate"},
        }
    )
    work.run()
    return Run(work, sequences, model)


@pytest.mark.parametrize(("treatment", "names"), [("windows", ["mean", "max", "std", "bos"]), ("cut", ["mean"])])
def test_tables_hold_what_transformers_computes(run: Run, treatment: str, names: list[str]) -> None:
    for layer in (0, 2, LAYERS):
        for name in names:
            table = run.work.table("a", treatment, f"layer{layer}.{name}")
            assert list(table["id"]) == list(run.sequences)
            for protein, vector in zip(table["id"], matrix(table), strict=True):
                expected = run.expected(protein, treatment)
                if np.linalg.norm(expected[layer, name]) > 0:
                    assert relative_error(vector, expected[layer, name]) <= 1e-5, (layer, name, protein)
                else:
                    assert np.abs(vector).max() <= 1e-5


@pytest.mark.parametrize("treatment", ["windows", "cut"])
@pytest.mark.parametrize("name", RAGGED)
def test_residue_files_hold_what_transformers_computes(run: Run, treatment: str, name: str) -> None:
    with h5py.File(run.work.root / "results/residues/a" / treatment / f"layer{LAYERS}.{name}.h5") as file:
        values, offsets, places = file["embeddings"][:], file["offsets"][:], file["sequence"][:]
        ids = [text.decode() for text in file["id"][:]]
    assert values.shape[1] == (64 if name == "logits" else 128)
    for protein, place in zip(ids, places, strict=True):
        expected = run.expected(protein, treatment)
        residues = expected.get((LAYERS, name), expected.get((-1, "per_tok")))
        if name == "logits":
            assert np.abs(values[offsets[place] : offsets[place + 1]] - residues).max() <= 1e-4
        else:
            assert relative_error(values[offsets[place] : offsets[place + 1]], residues) <= 1e-5


def test_the_licence_and_the_model_are_told_by_tables_and_the_report(run: Run) -> None:
    metadata = pq.read_schema(run.work.root / "results/features/a/cut/layer3.mean.parquet").metadata
    assert metadata[b"esmflow.weights_licence"] == LICENCE.encode()
    run.work.run("--", "report")
    page = (run.work.root / "results/report/index.html").read_text()
    assert ">ESM-C</td>" in page
    assert f"<td>{LICENCE}</td>" in page
    assert "map0-pca" in page


def test_the_same_model_in_the_layout_of_2024_gives_the_same_tables(run: Run, tmp_path: Path) -> None:
    work = run.work.copy(tmp_path / "again", inputs_only=True)
    written = esmc.write(work.root, run.model, "2024")
    work.change_config(lambda config: config["models"].pop("windows"))
    work.change_config(lambda config: config["models"]["cut"].update(weights=written.name))
    work.run()
    for layer in (0, 2, LAYERS):
        table, other = (each.table("a", "cut", f"layer{layer}.mean") for each in (work, run.work))
        assert list(table["id"]) == list(other["id"])
        assert relative_error(matrix(table), matrix(other)) <= 1e-6


def test_contacts_are_refused_before_anything_is_computed(run: Run, tmp_path: Path) -> None:
    work = run.work.copy(tmp_path / "again", inputs_only=True)
    work.change_config(lambda config: config["models"].pop("windows"))
    work.change_config(lambda config: config["models"]["cut"].update(representations=["mean", "contacts"]))
    result = work.run(check=False)
    assert result.returncode
    assert "contacts" in result.stderr + result.stdout
    assert "Traceback (most" not in result.stderr
    assert not work.store_files()

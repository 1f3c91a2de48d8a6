"""A run of ESM-C, from FASTA files to tables, residues and the report, against transformers' own module."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
import reference
import reference_esmc as esmc
import torch
from in_process import call
from workflow import Vectors, Workspace, error_line, matrix, plain, relative_error

MAX_LENGTH, OVERLAP, LAYERS = 90, 20, 3
RAGGED = ["per_tok", "logits"]
LICENCE = "mit"


@dataclass(frozen=True)
class Run:
    """A run that has come to its end, what it was given, and its model."""

    work: Workspace
    sequences: dict[str, str]
    model: torch.nn.Module
    computed: dict[tuple[str, str], Vectors] = field(default_factory=dict)

    def expected(self, name: str, treatment: str) -> Vectors:
        """transformers' values of a sequence, which is cut or read in windows if it is too long."""
        if (name, treatment) not in self.computed:
            self.computed[name, treatment] = self._compute(self.sequences[name], treatment)
        return self.computed[name, treatment]

    def _compute(self, sequence: str, treatment: str) -> Vectors:
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
def run(uniprot: list[str], once: Callable[[str, Callable[[Path], None]], Path]) -> Run:
    model = esmc.tiny_esmc(layers=LAYERS)
    chosen = [s for s in uniprot if len(s) <= MAX_LENGTH][:6] + [s for s in uniprot if 150 <= len(s) <= 300][:3]
    sequences = {f"p{number}": sequence for number, sequence in enumerate([*chosen, "M", "MXBZUOW"])}
    entries = [plain(name, sequence) for name, sequence in sequences.items()]
    pooled = ["mean", "max", "std", "bos"]
    windows = {"long_sequences": "window", "max_length": MAX_LENGTH, "window_overlap": OVERLAP}
    cut = {"long_sequences": "truncate", "max_length": MAX_LENGTH}

    def run_all(directory: Path) -> None:
        work = Workspace(directory)
        (directory / "weights").mkdir()
        esmc.write(directory / "weights", model, "transformers")
        (directory / "weights" / "README.md").write_text(f"---\nlicense: {LICENCE}\n---\n")
        work.write_samples([("a", work.write_fasta("a.fasta", entries))])
        work.write_config(
            {
                "windows": windows | {"weights": "weights", "layers": [-1], "representations": [*pooled, *RAGGED]},
                "cut": cut | {"weights": "weights", "layers": [0, 2], "representations": ["mean", *RAGGED]},
                "cut_2024": cut | {"weights": esmc.write(directory, model, "2024").name, "layers": [0, 2]},
            },
            workers={"mix_models": True},
        )
        work.run("--", "all", "report")

    return Run(Workspace(once("esmc", run_all)), sequences, model)


@pytest.mark.parametrize(
    ("treatment", "layers", "names"), [("windows", (LAYERS,), ["mean", "max", "std", "bos"]), ("cut", (0, 2), ["mean"])]
)
def test_tables_hold_what_transformers_computes(
    run: Run, treatment: str, layers: tuple[int, ...], names: list[str]
) -> None:
    for layer, name in product(layers, names):
        table = run.work.table("a", treatment, f"layer{layer}.{name}")
        assert list(table["id"]) == list(run.sequences)
        for protein, vector in zip(table["id"], matrix(table), strict=True):
            expected = run.expected(protein, treatment)
            if np.linalg.norm(expected[layer, name]) > 0:
                assert relative_error(vector, expected[layer, name]) <= 1e-5, (layer, name, protein)
            else:
                assert np.abs(vector).max() <= 1e-5


@pytest.mark.parametrize(
    ("treatment", "layer", "name"),
    [("windows", LAYERS, "per_tok"), ("cut", 2, "per_tok"), ("windows", LAYERS, "logits"), ("cut", LAYERS, "logits")],
)
def test_residue_files_hold_what_transformers_computes(run: Run, treatment: str, layer: int, name: str) -> None:
    with h5py.File(run.work.root / "results/residues/a" / treatment / f"layer{layer}.{name}.h5") as file:
        values, offsets, places = file["embeddings"][:], file["offsets"][:], file["sequence"][:]
        ids = [text.decode() for text in file["id"][:]]
    assert values.shape[1] == (64 if name == "logits" else 128)
    for protein, place in zip(ids, places, strict=True):
        expected = run.expected(protein, treatment)
        residues = expected.get((layer, name), expected.get((-1, "per_tok")))
        if name == "logits":
            assert np.abs(values[offsets[place] : offsets[place + 1]] - residues).max() <= 1e-4
        else:
            assert relative_error(values[offsets[place] : offsets[place + 1]], residues) <= 1e-5


def test_the_licence_and_the_model_are_told_by_tables_and_the_report(run: Run) -> None:
    metadata = pq.read_schema(run.work.root / "results/features/a/cut/layer2.mean.parquet").metadata
    assert metadata[b"esmflow.weights_licence"] == LICENCE.encode()
    page = (run.work.root / "results/report/index.html").read_text()
    assert ">ESM-C</td>" in page
    assert f"<td>{LICENCE}</td>" in page
    assert "map0-pca" in page


def test_the_same_model_in_the_layout_of_2024_gives_the_same_tables(run: Run) -> None:
    for layer in (0, 2):
        table, other = (run.work.table("a", name, f"layer{layer}.mean") for name in ("cut_2024", "cut"))
        assert list(table["id"]) == list(other["id"])
        assert relative_error(matrix(table), matrix(other)) <= 1e-6
    hashes = {json.loads(path.read_text())["sha256"] for path in (run.work.root / "results/models").glob("*.json")}
    assert len(hashes) == 2


def test_contacts_are_refused_by_the_plan(run: Run, tmp_path: Path) -> None:
    for part in ("sequences", "models"):
        shutil.copytree(run.work.root / "results" / part, tmp_path / part)
    spec = {"layers": [-1], "representations": ["mean", "contacts"], "long_sequences": "truncate"}
    spec |= {"max_length": MAX_LENGTH, "window_overlap": 0, "precision": "auto"}
    places = ["--samples", "samples.tsv", "--store", "store", "--results", tmp_path]
    sizes = ["--target-minutes", "1", "--max-jobs", "1", "--gpus-per-job", "0"]
    result = call("plan", "--models", json.dumps({"cut": spec}), *places, *sizes, cwd=run.work.root)
    assert result.returncode == 78
    assert "contacts" in error_line(result)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models", "sequences"]

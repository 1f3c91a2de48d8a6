"""Directories whose names would mean something to DuckDB: they are taken as they are, whatever lies beside them."""

from pathlib import Path

import duckdb
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from esmflow import database
from esmflow.architecture import Architecture
from esmflow.errors import ConfigError
from esmflow.inputs.catalog import ingest
from esmflow.inputs.fasta import key_of
from esmflow.inputs.samples import Fasta
from esmflow.planned_model import Descriptor, ModelSpec, PlannedModel
from esmflow.representation import Output
from esmflow.store import keeping
from esmflow.store.store import Store, commit
from esmflow.tables.exports import EXPORTS
from esmflow.tables.features import write_table
from esmflow.tables.ordered import embedded
from esmflow.tables.residues import write_residues
from esmflow.tables.status import write_status
from esmflow.treatment import WHOLE

SHAPE = Architecture("ESM-2", 6, 8, 4, 32, token_dropout=True, max_residues=None, lm_head=True, contact_head=True)
MODEL = PlannedModel(
    ModelSpec("m", (6,), ("mean", "per_tok"), "skip", 1022, 0, "auto"), Descriptor("m", [], [], "ab" * 32, SHAPE)
)
MEAN, RESIDUES = MODEL.outputs
NAMES = [
    "id=abc",
    "res[1]",
    "res1",
    "a*b",
    "a-b",
    "q?c",
    "[[]",
    "**",
    "{a,b}",
    "back\\slash",
    "a'b",
]


def write_run(root: Path, number: int) -> dict[str, np.ndarray]:
    """A catalog and a store of three proteins of the run's own, and the vector of each."""
    root.mkdir()
    proteins = {f"r{number}p{row}": "M" + "KV" * (1 + number) + "A" * row for row in range(3)}
    (root / "a.fa").write_text("".join(f">{name}\n{residues}\n" for name, residues in proteins.items()))
    ingest("a", [Fasta(root / "a.fa")], root / "catalog.parquet", root / "sequences.parquet", fail_on_invalid=True)
    keys, lengths = zip(*(key_of(residues) for residues in proteins.values()), strict=True)
    draw = np.random.default_rng(number)
    values = {RESIDUES: [draw.normal(size=(length, 8)).astype(np.float32) for length in lengths]}
    values[MEAN] = [value.mean(axis=0) for value in values[RESIDUES]]
    path = Store(root / "store").path(MODEL.space(WHOLE), "shard")
    metadata = {"model": "m", "weights_sha256": "", "precision": "fp32", "attention": "sdpa"}
    commit(path, pa.array(keys, pa.binary(32)), [None] * 3, values, metadata)
    return dict(zip(proteins, values[MEAN], strict=True))


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, np.ndarray]]:
    """Runs beside each other in the current directory, each with the vectors that it has."""
    monkeypatch.chdir(tmp_path)
    return {name: write_run(Path(name), number) for number, name in enumerate(NAMES)}


def test_all_that_is_made_of_a_run_is_its_own(runs: dict[str, dict[str, np.ndarray]]) -> None:
    for name, expected in runs.items():
        root, ids = Path(name), list(expected)
        catalog, store = root / "catalog.parquet", Store(root / "store")
        write_table(catalog, MODEL, MEAN, store, root / "table.parquet")
        table = pq.read_table((root / "table.parquet").absolute())
        assert table["id"].to_pylist() == ids
        assert np.array_equal(np.array(table["embedding"].to_pylist(), np.float32), list(expected.values()))
        write_residues(catalog, MODEL, RESIDUES, store, root / "residues.h5")
        with h5py.File(root / "residues.h5") as file:
            assert file["id"].asstr()[:].tolist() == ids
        write_status(catalog, [MODEL], store, root / "status.tsv", {})
        rows = [line.split("\t") for line in (root / "status.tsv").read_text().splitlines()[1:]]
        assert [(row[0], row[2]) for row in rows] == [(identifier, "embedded") for identifier in ids]
        mean = PlannedModel(ModelSpec("m", (6,), ("mean",), "skip", 1022, 0, "auto"), MODEL.descriptor)
        with embedded(catalog, mean, store, root / "e.h5", root / "sequences.parquet") as records:
            EXPORTS["bio_embeddings"].write(records, root / "e.h5", root / "mapping.csv")
        assert [line.split(",")[1] for line in (root / "mapping.csv").read_text().splitlines()[1:]] == ids


def test_a_sequence_is_looked_up_in_the_store_that_is_given(runs: dict[str, dict[str, np.ndarray]]) -> None:
    for number, name in enumerate(runs):
        key, length = key_of("M" + "KV" * (1 + number))
        [(entry, row, reason)] = keeping.find(Path(name, "store"), key, output=MEAN)
        assert reason is None
        assert np.array_equal(keeping.values(entry, row, MEAN, length), runs[name][f"r{number}p0"])


@pytest.mark.parametrize("name", [*NAMES, "~", "file:", "s3:", "../up", "."])
def test_a_literal_path_is_one_file_whose_name_is_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    path = Path(name, "file.csv")
    path.parent.mkdir(exist_ok=True)
    path.write_text("id\nmine\n")
    rows = duckdb.execute(
        "SELECT id, filename FROM read_csv($1, header = true, filename = true, hive_partitioning = false)",
        [database.literal(path)],
    ).fetchall()
    assert rows == [("mine", str(path.absolute()))]


def test_a_residue_file_of_vectors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mean is one vector per protein"):
        write_residues(tmp_path / "no.parquet", MODEL, Output(6, "mean"), Store(tmp_path), tmp_path / "r.h5")

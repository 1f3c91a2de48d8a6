"""Exports of records whose headers and disks are not as one would wish: NUL bytes, huge IDs, no room."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pytest
from esmflow.architecture import Architecture
from esmflow.inputs.catalog import ingest
from esmflow.inputs.fasta import Fasta
from esmflow.planned_model import Descriptor, ModelSpec, PlannedModel
from esmflow.report.page import read_status
from esmflow.representation import Output
from esmflow.results import Results, read_outcomes
from esmflow.store.store import Store, commit
from esmflow.tables.exports import EXPORTS
from esmflow.tables.hdf5 import writing
from esmflow.tables.ordered import embedded
from esmflow.tables.residues import write_residues
from esmflow.tables.status import write_status
from esmflow.treatment import WHOLE

SHAPE = Architecture("ESM-2", 6, 64, 4, 256, token_dropout=True, max_residues=None, lm_head=True, contact_head=True)
SPEC = ModelSpec("m", (6,), ("mean", "per_tok"), "truncate", 1022, 0, "fp32")
MODEL = PlannedModel(SPEC, Descriptor("m", [], [], "ab" * 32, SHAPE))
VECTORS = MODEL.asked_for(["mean"])
LENGTH = 40


def make(root: Path, fasta: str) -> Results:
    """A sample whose records are all in the store, and a status file."""
    results, store = Results(root / "results"), Store(root / "store")
    (root / "a.fasta").write_text(fasta)
    ingest("a", [Fasta(root / "a.fasta")], results.catalog("a"), results.sequences("a"), fail_on_invalid=False)
    keys = sorted(set(pa.parquet.read_table(results.sequences("a"))["key"].to_pylist()))
    shapes = {"mean": (SHAPE.embed_dim,), "per_tok": (LENGTH, SHAPE.embed_dim)}
    draw = np.random.default_rng(1)
    values = {
        output: [draw.normal(size=shapes[output.representation]).astype(np.float32) for _ in keys]
        for output in MODEL.outputs
    }
    path = store.path(MODEL.space(WHOLE), "shard")
    commit(path, pa.array(keys, pa.binary(32)), [None] * len(keys), values, {"precision": "fp32", "attention": "sdpa"})
    write_status(results.catalog("a"), [MODEL], store, results.status("a"), {})
    MODEL.descriptor.save(results.descriptor("m"))
    return results


def records(count: int) -> str:
    letters = "ACDEFGHIKLMNPQRSTVWY"
    draw = np.random.default_rng(2)
    return "".join(f">r{number}\n{''.join(draw.choice(list(letters), LENGTH))}\n" for number in range(count))


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return make(tmp_path_factory.mktemp("many"), records(2000))


def test_a_nul_byte_in_a_header_ends_no_export(tmp_path: Path) -> None:
    results = make(tmp_path, f">i\0d one\0two\nMKV{'L' * (LENGTH - 3)}\n")
    for name in ("uniprot_h5", "bio_embeddings", "anndata", "fair_esm_pt"):
        export = EXPORTS[name]
        targets = [tmp_path / name / path.format(output="layer6.mean") for path in export.layouts[0].paths]
        sequences = results.sequences("a") if export.needs_residues else None
        with embedded(results.catalog("a"), VECTORS, Store(tmp_path / "store"), targets[0], sequences) as rows:
            export.write(rows, *targets)
    with h5py.File(tmp_path / "anndata/anndata/layer6.mean.h5ad") as file:
        assert file["obs/description"][0].decode() == "one\\x00two"
    write_residues(results.catalog("a"), MODEL, Output(6, "per_tok"), Store(tmp_path / "store"), tmp_path / "r.h5")
    with h5py.File(tmp_path / "r.h5") as file:
        assert file["id"][0].decode() == "i\\x00d"


def test_an_id_of_three_million_characters_is_counted(tmp_path: Path) -> None:
    results = make(tmp_path, f">{'x' * 3_000_000}\nMKV{'L' * (LENGTH - 3)}\n>y\nM*V\n")
    assert read_outcomes(results.status("a")) == {("embedded", "", LENGTH): 1, ("skipped", "inner stop", 0): 1}
    assert read_status(results.status("a"), "a").lengths == {LENGTH: 1}
    command = [sys.executable, "scripts/summary.py", results.root]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert told.startswith("a: 2 records, 1 embedded, 1 skipped\n    1 inner stop\n")


def export_arguments(results: Results, name: str, targets: list[Path]) -> list[str]:
    spec = {field: getattr(SPEC, field) for field in SPEC.__dataclass_fields__} | {"representations": ["mean"]}
    options = ["--format", name, "--model", "m", "--spec", json.dumps(spec), f"--catalog={results.catalog('a')}"]
    options += [f"--descriptor={results.descriptor('m')}", f"--store={results.root.parent / 'store'}"]
    if EXPORTS[name].needs_residues:
        options.append(f"--sequences={results.sequences('a')}")
    return ["scripts/export.py", *options, "--", *map(str, targets)]


def residue_arguments(results: Results, target: Path) -> list[str]:
    spec = {field: getattr(SPEC, field) for field in SPEC.__dataclass_fields__} | {"representations": ["per_tok"]}
    options = ["--model", "m", "--spec", json.dumps(spec), f"--catalog={results.catalog('a')}"]
    options += [f"--descriptor={results.descriptor('m')}", f"--store={results.root.parent / 'store'}"]
    return ["scripts/residues.py", *options, f"--file={target}"]


@pytest.mark.parametrize("name", ["uniprot_h5", "bio_embeddings", "anndata", "fair_esm_pt", "residues"])
def test_a_disk_that_fills_up_under_an_export_is_told_in_one_line_and_nothing_is_left(
    name: str, many: Results, small_disk: Path
) -> None:
    if name == "residues":
        arguments = residue_arguments(many, small_disk / "r.h5")
    else:
        paths = EXPORTS[name].layouts[0].paths
        arguments = export_arguments(many, name, [small_disk / path.format(output="layer6.mean") for path in paths])
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 73, done.stderr
    assert "cannot be written: the disk is full" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert [path for path in small_disk.rglob("*") if path.is_file() or path.name.startswith(".")] == []


def fill_and_stumble(target: Path) -> None:
    """Write more than there is room for, of which the library then misses something."""
    with writing(target) as file:
        file["x"] = np.zeros(1 << 20, np.float32)
        file.flush()
        raise OSError("Can't read data (wrong signature)")


def test_what_hdf5_says_of_data_that_a_full_disk_has_lost_is_not_what_is_told(small_disk: Path) -> None:
    with pytest.raises(OSError, match="No space left") as told:
        fill_and_stumble(small_disk / "x.h5")
    assert told.value.errno == errno.ENOSPC
    assert list(small_disk.iterdir()) == []


def test_hdf5_reads_back_what_a_full_disk_has_not_taken(small_disk: Path) -> None:
    """It crashes on what it finds in place of texts, which it writes in blocks that it reads again."""
    values = np.random.default_rng(0).integers(0, 1 << 30, 1 << 20)
    texts = [f"text {number}" for number in range(5000)]
    read = []

    def fill_and_read() -> None:
        with writing(small_disk / "x.h5") as file:
            file["before"], file["values"], file["texts"] = values[:1000], values, texts
            file.flush()
            read.extend([file["before"][...], file["values"][...], file["texts"].asstr()[...]])

    with pytest.raises(OSError, match="No space left"):
        fill_and_read()
    assert [part.tolist() for part in read] == [values[:1000].tolist(), values.tolist(), texts]
    assert list(small_disk.iterdir()) == []

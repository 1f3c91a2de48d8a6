"""Real runs of the workflow, read by what users read tables with and compared with fair-esm."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars
import pyarrow.parquet as pq
import pytest
import reference
import torch
from Bio import SeqIO
from random_residues import residues
from workflow import (
    FULL_SIZE,
    LAYERS,
    MAX_LENGTH,
    MODEL,
    Baseline,
    Entry,
    Vectors,
    Workspace,
    plain,
    relative_error,
    worst_error,
)

TOLERANCE = 1e-5
OUTPUTS = [(layer, representation) for layer in (0, LAYERS) for representation in ("mean", "std")]
Columns = tuple[list[str], list[int], list[list[float]]]


def read_with_pandas(path: Path) -> Columns:
    table = pd.read_parquet(path)
    return table["id"].to_list(), table["length"].to_list(), table["embedding"].to_list()


def read_with_pyarrow(path: Path) -> Columns:
    table = pq.read_table(path)
    return table["id"].to_pylist(), table["length"].to_pylist(), table["embedding"].to_pylist()


def read_with_duckdb(path: Path) -> Columns:
    with duckdb.connect() as connection:
        table = connection.sql("SELECT * FROM read_parquet($1)", params=[str(path)]).to_arrow_table()
    return table["id"].to_pylist(), table["length"].to_pylist(), table["embedding"].to_pylist()


def read_with_polars(path: Path) -> Columns:
    table = polars.read_parquet(path)
    return table["id"].to_list(), table["length"].to_list(), table["embedding"].to_list()


READERS = [read_with_pandas, read_with_pyarrow, read_with_duckdb, read_with_polars]


def status_of(entry: Entry, *, flags: str = "", reason: str = "") -> tuple[str, str, str, str, str]:
    """The row of the status file that the design asks for."""
    reason = entry.reason or reason
    flags = ",".join(filter(None, [entry.flags, flags]))
    return entry.id, str(len(entry.residues)), "skipped" if reason else "embedded", reason, flags


def rows(table: pd.DataFrame) -> list[tuple[str, ...]]:
    return list(table.itertuples(index=False, name=None))


def test_a_table_holds_every_embedded_record_in_file_order_with_the_vector_of_fair_esm(
    baseline: Baseline, fair_esm: Callable[[str], Vectors]
) -> None:
    """Whatever reads it. In small, fair-esm computes the odd, the long and a part of the others."""
    for sample, (layer, representation) in product("ab", OUTPUTS):
        path = baseline.work.root / "results/features" / sample / MODEL / f"layer{layer}.{representation}.parquet"
        ids, lengths, vectors = read_with_pandas(path)
        assert ids == [entry.id for entry in baseline.embedded(sample)]
        assert lengths == [len(entry.residues) for entry in baseline.embedded(sample)]
        for number, (entry, seen) in enumerate(zip(baseline.embedded(sample), baseline.seen(sample), strict=True)):
            if FULL_SIZE or number % 8 == 0 or entry.flags or len(entry.residues) > MAX_LENGTH:
                vector = np.array(vectors[number], dtype=np.float32)
                assert relative_error(vector, fair_esm(seen)[layer, representation]) <= TOLERANCE, entry
        for read in READERS:
            assert_same(read(path), (ids, lengths, vectors))


def assert_same(columns: Columns, expected: Columns) -> None:
    assert columns[:2] == expected[:2]
    assert np.array_equal(np.array(columns[2], dtype=np.float32), np.array(expected[2], dtype=np.float32))


def test_the_columns_are_a_string_an_int32_and_a_fixed_size_list_of_float32(baseline: Baseline) -> None:
    for path in baseline.work.table_files():
        types = {field.name: str(field.type) for field in pq.read_schema(path)}
        assert list(types) == ["id", "length", "embedding"]
        assert (types["id"], types["length"]) == ("string", "int32")
        assert types["embedding"].startswith("fixed_size_list<element: float")
        assert types["embedding"].endswith("[320]")


@pytest.mark.parametrize("sample", ["a", "b"])
def test_the_status_file_has_a_row_for_each_record_that_biopython_finds(baseline: Baseline, sample: str) -> None:
    found = baseline.work.status(sample)
    assert list(found.columns) == ["id", "length", "status", "reason", "flags"]
    with (baseline.work.root / f"{sample}.fasta").open() as file:
        records = list(SeqIO.parse(file, "fasta"))
    assert len(found) == len(records)
    named = [(row, record.id) for row, record in zip(found["id"], records, strict=True) if row]
    assert len(named) >= len(records) - 1
    assert all(row == name for row, name in named)


@pytest.mark.parametrize("sample", ["a", "b"])
def test_the_status_file_tells_reasons_and_flags_in_file_order(baseline: Baseline, sample: str) -> None:
    truncated = f"truncated:{MAX_LENGTH}"
    expected = [
        status_of(entry, flags=truncated if len(entry.residues) > MAX_LENGTH else "")
        for entry in baseline.entries[sample]
    ]
    assert rows(baseline.work.status(sample)) == expected
    assert any(truncated in flags for *_, flags in expected)


@pytest.mark.parametrize("sample", ["a", "b"])
def test_records_are_embedded_or_skipped_and_no_third_thing(baseline: Baseline, sample: str) -> None:
    counts = baseline.work.status(sample)["status"].value_counts()
    assert set(counts.index) == {"embedded", "skipped"}
    assert counts.sum() == len(baseline.entries[sample])
    for layer, representation in OUTPUTS:
        assert len(baseline.work.table(sample, MODEL, f"layer{layer}.{representation}")) == counts["embedded"]


def test_a_sequence_is_computed_once_however_many_records_carry_it(baseline: Baseline) -> None:
    computed = sum(receipt["sequences_computed"] for receipt in baseline.work.receipts().values())
    assert computed == len(baseline.unique())
    assert computed < len(baseline.embedded("a")) + len(baseline.embedded("b"))


@pytest.mark.parametrize(("layer", "representation"), OUTPUTS)
def test_the_metadata_says_where_the_vectors_come_from(
    baseline: Baseline, esm2_8m: Path, layer: int, representation: str
) -> None:
    path = baseline.work.root / "results/features/a" / MODEL / f"layer{layer}.{representation}.parquet"
    metadata = {name.decode(): value.decode() for name, value in pq.read_schema(path).metadata.items()}
    found = {name.removeprefix("esmflow."): value for name, value in metadata.items() if name.startswith("esmflow.")}
    assert found["model"] == MODEL
    assert found["weights_sha256"] == hashlib.sha256(esm2_8m.read_bytes()).hexdigest()
    assert found["weights_licence"] == "unknown"
    assert found["layer"] == str(layer)
    assert found["representation"] == representation
    assert found["long_sequences"] == "truncate"
    assert found["max_length"] == str(MAX_LENGTH)
    assert found["precision"] == "fp32"
    assert found["attention"] in {"sdpa", "flash_attn", "torch_varlen"}
    assert found["kernels"] in {"plain", "triton"}
    for package in ("torch", "numpy", "pyarrow"):
        assert found[f"version.{package}"] == version(package)


def test_running_again_finds_nothing_to_be_done(again: Workspace) -> None:
    before = again.files("results") + again.files("store")
    result = again.run()
    assert "Nothing to be done" in result.stdout + result.stderr
    assert again.files("results") + again.files("store") == before


@dataclass(frozen=True)
class TwoModels:
    """A run of two models on a sample and an empty one, that came about in steps, and what was there after each."""

    work: Workspace
    entries: list[Entry]

    @property
    def valid(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.residues]

    def steps(self) -> list[dict[str, Any]]:
        """For `preflight` twice and for one table by its path: what was told, the files made, the inode of the plan."""
        return json.loads((self.work.root / "steps.json").read_text())


TABLE_ASKED_FOR = "results/features/full/skips/layer1.max.parquet"
LONGEST = {"cuts": 60, "skips": 90}


@pytest.fixture(scope="module")
def two_models(once: Callable[[str, Callable[[Path], None]], Path]) -> TwoModels:
    """One model truncates at 60 and one skips what is longer than 90."""
    lengths = [40, 59, 60, 61, 75, 89, 90, 91, 120]
    entries = [plain(f"r{number}", residues(length, length)) for number, length in enumerate(lengths)]
    entries.insert(2, Entry("bad", "MK-V", reason="gap"))
    entries.append(Entry("lower", "mkv" * 40, "MKV" * 40, flags="lowercase"))

    def run(directory: Path) -> None:
        work = Workspace(directory)
        tiny_cuts(work.root / "cuts.pt")
        reference.tiny_esm2(work.root / "skips.pt")
        work.write_fasta("empty.fasta", [])
        work.write_samples([("full", work.write_fasta("full.fasta", entries)), ("empty", "empty.fasta")])
        cuts = {"weights": "cuts.pt", "long_sequences": "truncate", "max_length": LONGEST["cuts"]}
        skips = {"weights": "skips.pt", "long_sequences": "skip", "max_length": LONGEST["skips"]}
        work.write_config({"cuts": cuts, "skips": skips | {"layers": [1, -1], "representations": ["max"]}})
        steps = []
        for target in ("preflight", "preflight", TABLE_ASKED_FOR):
            told = work.run("--", target).stdout
            made = map(str, [*work.receipts(), *work.store_files(), *work.table_files()])
            steps.append({"told": told, "made": list(made), "plan": plan_inode(work)})
        (directory / "steps.json").write_text(json.dumps(steps))
        work.run()

    return TwoModels(Workspace(once("two_models", run)), entries)


def tiny_cuts(path: Path) -> torch.nn.Module:
    return reference.tiny_esm2(path, layers=2, embed_dim=64, seed=1)


def plan_inode(work: Workspace) -> int:
    return (work.root / "results/plan/plan.json").stat().st_ino


def test_the_preflight_tells_what_is_to_come_and_embeds_nothing(two_models: TwoModels) -> None:
    sequences = {entry.residues for entry in two_models.valid}
    to_embed = len(sequences) + sum(len(sequence) <= LONGEST["skips"] for sequence in sequences)
    first, second, asked = two_models.steps()
    for step in (first, second):
        assert f"{to_embed} sequences in 2 jobs" in step["told"]
        assert "nothing was embedded" in step["told"]
        assert step["made"] == []
    assert first["plan"] == second["plan"] == asked["plan"] == plan_inode(two_models.work)


def test_a_table_asked_for_by_its_path_alone_is_the_only_one_made(two_models: TwoModels) -> None:
    *_, asked = two_models.steps()
    work = two_models.work
    assert [path for path in asked["made"] if "/features/" in path] == [str(work.root / TABLE_ASKED_FOR)]
    assert len(work.table_files()) == 6


def test_two_models_at_once_each_treat_long_sequences_as_told(two_models: TwoModels, tmp_path: Path) -> None:
    valid = two_models.valid
    cuts, skips = tiny_cuts(tmp_path / "cuts.pt"), reference.tiny_esm2(tmp_path / "skips.pt")
    cut = two_models.work.table("full", "cuts", "layer2.mean")
    assert cut["id"].to_list() == [entry.id for entry in valid]
    assert cut["length"].to_list() == [len(entry.residues) for entry in valid]
    residues = [entry.residues[: LONGEST["cuts"]] for entry in valid]
    assert worst_error(cut, residues, lambda s: reference.represent(cuts, s), 2, "mean") <= TOLERANCE
    kept = [entry for entry in valid if len(entry.residues) <= LONGEST["skips"]]
    assert 0 < len(kept) < len(valid)
    for layer in (1, 3):
        found = two_models.work.table("full", "skips", f"layer{layer}.max")
        assert found["id"].to_list() == [entry.id for entry in kept]
        residues = [entry.residues for entry in kept]
        assert worst_error(found, residues, lambda s: reference.represent(skips, s), layer, "max") <= TOLERANCE


def test_reasons_and_flags_that_hold_for_one_of_two_models_name_it(two_models: TwoModels) -> None:
    expected = []
    for entry in two_models.entries:
        length = len(entry.residues)
        flags = "cuts:truncated:60" if length > LONGEST["cuts"] else ""
        reason = "skips: longer than 90 residues" if length > LONGEST["skips"] else ""
        expected.append(status_of(entry, flags=flags, reason=reason))
    assert rows(two_models.work.status("full")) == expected


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("table", ["cuts/layer2.mean", "skips/layer3.max"])
def test_an_empty_fasta_gives_a_table_without_rows(
    two_models: TwoModels, read: Callable[[Path], Columns], table: str
) -> None:
    work = two_models.work
    ids, lengths, vectors = read(work.root / "results/features/empty" / f"{table}.parquet")
    assert (len(ids), len(lengths), len(vectors)) == (0, 0, 0)
    assert len(work.status("empty")) == 0

"""Real runs of the workflow, read by what users read tables with and compared with fair-esm."""

import hashlib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars
import pyarrow.parquet as pq
import pytest
import reference
from Bio import SeqIO
from workflow import LAYERS, MAX_LENGTH, MODEL, Baseline, Entry, Vectors, Workspace, plain, relative_error, worst_error

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


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("sample", ["a", "b"])
@pytest.mark.parametrize(("layer", "representation"), OUTPUTS)
def test_a_table_holds_every_embedded_record_in_file_order_with_the_vector_of_fair_esm(
    baseline: Baseline,
    fair_esm: Callable[[str], Vectors],
    read: Callable[[Path], Columns],
    sample: str,
    layer: int,
    representation: str,
) -> None:
    path = baseline.work.root / "results/features" / sample / MODEL / f"layer{layer}.{representation}.parquet"
    ids, lengths, vectors = read(path)
    assert ids == [entry.id for entry in baseline.embedded(sample)]
    assert lengths == [len(entry.residues) for entry in baseline.embedded(sample)]
    expected = [fair_esm(residues)[layer, representation] for residues in baseline.seen(sample)]
    found = np.array(vectors, dtype=np.float32)
    assert max(relative_error(*pair) for pair in zip(found, expected, strict=True)) <= TOLERANCE


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


def test_a_table_asked_for_by_its_path_alone_is_the_only_one_made(work: Workspace) -> None:
    model = reference.tiny_esm2(work.root / "tiny.pt")
    entries = [plain(f"r{number}", "MKTAYIAKQRQISFVKSHFSRQ"[number:]) for number in range(5)]
    work.write_samples([("one", work.write_fasta("one.fasta", entries))])
    work.write_config({"tiny": {"weights": "tiny.pt", "layers": [1, -1], "representations": ["max", "bos"]}})
    target = "results/features/one/tiny/layer1.max.parquet"
    work.run("--", target)
    assert work.table_files() == [work.root / target]
    found = work.table("one", "tiny", "layer1.max")
    assert found["id"].to_list() == [entry.id for entry in entries]
    residues = [entry.residues for entry in entries]
    assert worst_error(found, residues, lambda s: reference.represent(model, s), 1, "max") <= TOLERANCE


def test_the_preflight_tells_what_is_to_come_and_embeds_nothing(work: Workspace) -> None:
    reference.tiny_esm2(work.root / "tiny.pt")
    work.write_samples([("one", work.write_fasta("one.fasta", [plain("p", "MKV"), plain("q", "MKVA")]))])
    work.write_config({"tiny": {"weights": "tiny.pt"}})
    for _ in range(2):
        result = work.run("--", "preflight")
        assert "2 sequences in 1 jobs" in result.stdout
        assert "nothing was embedded" in result.stdout
    assert (work.receipts(), work.store_files(), work.table_files()) == ({}, [], [])
    planned = (work.root / "results/plan/plan.json").stat().st_ino
    work.run()
    assert (work.root / "results/plan/plan.json").stat().st_ino == planned
    assert len(work.table("one", "tiny", "layer3.mean")) == 2


@pytest.fixture(scope="module")
def two_models(
    baseline: Baseline, esm2_8m: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Workspace, list[Entry]]:
    """One model that truncates at 60 and one that skips what is longer than 90, on a sample and an empty one."""
    work = Workspace(tmp_path_factory.mktemp("two_models"))
    reference.tiny_esm2(work.root / "tiny.pt")
    proteins = baseline.new[:4] + [
        sequence[:n] for sequence, n in zip(baseline.new[4:8], (60, 61, 59, 40), strict=True)
    ]
    proteins += [(baseline.new[8] * 2)[:n] for n in (89, 90, 91)]
    entries = [plain(f"r{number}", sequence) for number, sequence in enumerate(proteins)]
    entries.insert(2, Entry("bad", "MK-V", reason="gap"))
    entries.append(Entry("lower", "mkv" * 40, "MKV" * 40, flags="lowercase"))
    (work.root / "empty.fasta").touch()
    work.write_samples([("full", work.write_fasta("full.fasta", entries)), ("empty", "empty.fasta")])
    work.write_config(
        {
            "cuts": {"weights": str(esm2_8m), "long_sequences": "truncate", "max_length": 60},
            "skips": {"weights": "tiny.pt", "long_sequences": "skip", "max_length": 90},
        }
    )
    work.run()
    return work, entries


def test_two_models_at_once_each_treat_long_sequences_as_told(
    two_models: tuple[Workspace, list[Entry]], fair_esm: Callable[[str], Vectors], tmp_path: Path
) -> None:
    work, entries = two_models
    valid = [entry for entry in entries if entry.residues]
    cut = work.table("full", "cuts", f"layer{LAYERS}.mean")
    assert cut["id"].to_list() == [entry.id for entry in valid]
    assert cut["length"].to_list() == [len(entry.residues) for entry in valid]
    assert worst_error(cut, [entry.residues[:60] for entry in valid], fair_esm, LAYERS, "mean") <= TOLERANCE
    kept = [entry for entry in valid if len(entry.residues) <= 90]
    assert 0 < len(kept) < len(valid)
    tiny = reference.tiny_esm2(tmp_path / "same.pt")
    found = work.table("full", "skips", "layer3.mean")
    assert found["id"].to_list() == [entry.id for entry in kept]
    residues = [entry.residues for entry in kept]
    assert worst_error(found, residues, lambda s: reference.represent(tiny, s), 3, "mean") <= TOLERANCE


def test_reasons_and_flags_that_hold_for_one_of_two_models_name_it(
    two_models: tuple[Workspace, list[Entry]],
) -> None:
    work, entries = two_models
    expected = []
    for entry in entries:
        length = len(entry.residues)
        flags = "cuts:truncated:60" if length > 60 else ""
        expected.append(status_of(entry, flags=flags, reason="skips: longer than 90 residues" if length > 90 else ""))
    assert rows(work.status("full")) == expected


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("table", [f"cuts/layer{LAYERS}.mean", "skips/layer3.mean"])
def test_an_empty_fasta_gives_a_table_without_rows(
    two_models: tuple[Workspace, list[Entry]], read: Callable[[Path], Columns], table: str
) -> None:
    work, _ = two_models
    ids, lengths, vectors = read(work.root / "results/features/empty" / f"{table}.parquet")
    assert (len(ids), len(lengths), len(vectors)) == (0, 0, 0)
    assert len(work.status("empty")) == 0

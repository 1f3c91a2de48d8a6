"""Ingest: FASTA files into a sample's catalog and sequences."""

import bz2
import gzip
import hashlib
import logging
import lzma
import random
import resource
import subprocess
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from esmflow.errors import DataError
from esmflow.inputs import catalog as inputs_catalog
from esmflow.inputs.catalog import ingest, keys_of
from esmflow.inputs.samples import Fasta
from esmflow.refusal import refusal
from ingestion import command, ingest_here, outputs, peak_megabytes, run

FIRST = b">a one\nMKV\n>b\nmjk*\n>a again\nMKV\n"
SECOND = b">c\nM-K\n>\nMKV\n>d x y\nWW\nWW\n>b\nMKV\n>e\n"


def files_left(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if not path.is_dir()]


def ingest_all(directory: Path, *contents: bytes, fail_on_invalid: bool = False) -> tuple[pa.Table, pa.Table]:
    fastas = []
    for number, content in enumerate(contents):
        fastas.append(directory / f"{number}.fa")
        fastas[-1].write_bytes(content)
    ingest("s", map(Fasta, fastas), *outputs(directory), fail_on_invalid=fail_on_invalid)
    catalog, sequences = (pq.read_table(path) for path in outputs(directory))
    return catalog, sequences


def write_proteins(path: Path, megabytes: int, *, header: int = 30, residues: int = 300) -> Path:
    """A FASTA of about this size of proteins that all differ."""
    generator = random.Random(megabytes)
    pool = "".join(generator.choices("ACDEFGHIKLMNPQRSTVWY", k=1 << 20)).encode()
    with path.open("wb") as file:
        number = 0
        while file.tell() < megabytes << 20:
            start = generator.randrange(len(pool) - residues)
            file.write(b">p%d %s\n%s\n" % (number, b"d" * header, pool[start : start + residues]))
            number += 1
    return path


def test_the_catalog_has_the_columns_and_types_of_the_contract(tmp_path: Path) -> None:
    catalog, sequences = ingest_all(tmp_path, FIRST)
    assert {name: str(kind) for name, kind in zip(catalog.schema.names, catalog.schema.types, strict=True)} == {
        "index": "int64",
        "id": "string",
        "description": "string",
        "length": "int32",
        "key": "fixed_size_binary[32]",
        "status": "string",
        "reason": "string",
        "flags": "string",
    }
    assert sequences.schema.names == ["key", "length", "residues"]


def test_records_stand_in_file_order_over_several_files_with_duplicates_kept(tmp_path: Path) -> None:
    catalog, _ = ingest_all(tmp_path, FIRST, gzip.compress(SECOND))
    assert catalog["index"].to_pylist() == list(range(8))
    assert catalog["id"].to_pylist() == ["a", "b", "a", "c", "", "d", "b", "e"]
    assert catalog["description"].to_pylist() == ["one", "", "again", "", "", "x y", "", ""]


def test_keys_are_the_sha256_of_the_cleaned_residues(tmp_path: Path) -> None:
    catalog, sequences = ingest_all(tmp_path, FIRST, SECOND)
    residues = [b"MKV", b"MXK", b"MKV", None, None, b"WWWW", b"MKV", None]
    keys = [hashlib.sha256(letters).digest() if letters else None for letters in residues]
    assert catalog["key"].to_pylist() == keys
    assert catalog["length"].to_pylist() == [len(letters or b"") for letters in residues]
    assert {(row["key"], row["length"], row["residues"]) for row in sequences.to_pylist()} == {
        (hashlib.sha256(letters).digest(), len(letters), letters) for letters in residues if letters
    }


def test_skipped_records_have_a_reason_and_valid_ones_none(tmp_path: Path) -> None:
    catalog, _ = ingest_all(tmp_path, FIRST, SECOND)
    assert catalog["status"].to_pylist() == [*["valid"] * 3, *["skipped"] * 2, *["valid"] * 2, "skipped"]
    assert catalog["reason"].to_pylist() == [None, None, None, "gap", "no id", None, None, "no residues"]
    assert catalog["flags"].to_pylist()[1].split(",") == ["lowercase", "terminal_stop", "to_X:1"]
    assert [catalog["flags"].to_pylist()[row] for row in (0, 2, 3, 5)] == [""] * 4


@pytest.mark.parametrize("contents", [[b""], [b"\n"], [b"", b">a\nM\n", b""]])
def test_a_file_without_records_is_told_and_gives_a_catalog_without_its_rows(
    tmp_path: Path, contents: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    catalog, sequences = ingest_all(tmp_path, *contents)
    assert len(catalog) == len(sequences) == b"".join(contents).count(b">")
    assert "0.fa" in caplog.text


def test_more_records_than_a_row_group_holds_are_all_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs_catalog, "_BATCH_RECORDS", 5_000)
    count = 12_001
    catalog, sequences = ingest_all(tmp_path, b"".join(b">p%d\nMK\n" % number for number in range(count)))
    assert catalog["index"].to_pylist() == list(range(count))
    assert catalog["id"].to_pylist() == [f"p{number}" for number in range(count)]
    assert set(sequences["residues"].to_pylist()) == {b"MK"}


def test_fail_on_invalid_lists_the_first_20_and_leaves_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = b"".join(b">bad%d\nM-K\n" % number for number in range(30))
    with caplog.at_level(logging.INFO), pytest.raises(DataError, match=r"30 of 32\b") as caught:
        ingest_all(tmp_path, b">ok\nMK\n" + bad + b">ok\nM\n", fail_on_invalid=True)
    listed = [message for message in caplog.messages if "bad" in message]
    assert len(listed) == 20
    assert all(f"bad{number}:" in line and "gap" in line for number, line in enumerate(listed))
    assert all(f"0.fa:{3 + 2 * number}:" in line for number, line in enumerate(listed))
    assert "\n" not in str(caught.value)
    assert files_left(tmp_path) == [tmp_path / "0.fa"]


def test_control_characters_of_an_id_are_told_as_text(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(DataError) as caught:
        ingest_all(tmp_path, b">a\x1b[31mred\x07 x\nM-K\n", fail_on_invalid=True)
    for text in (str(caught.value), caplog.text.rstrip("\n")):
        assert text.isprintable()
        assert r"a\x1b[31mred\x07" in text


def test_fail_on_invalid_passes_what_is_valid(tmp_path: Path) -> None:
    catalog, _ = ingest_all(tmp_path, FIRST, fail_on_invalid=True)
    assert len(catalog) == 3


@pytest.mark.parametrize(
    "damaged",
    [
        pytest.param(b"no FASTA at all\n", id="text"),
        pytest.param(gzip.compress(FIRST * 100)[:-9], id="cut gzip"),
        pytest.param(zstandard.compress(FIRST * 100)[:-9], id="cut zstd"),
    ],
)
def test_a_damaged_second_file_leaves_nothing_behind(tmp_path: Path, damaged: bytes) -> None:
    with pytest.raises(DataError, match=r"1\.fa"):
        ingest_all(tmp_path, FIRST, damaged)
    assert sorted(path.name for path in files_left(tmp_path)) == ["0.fa", "1.fa"]


def test_a_failed_ingest_leaves_an_earlier_catalog_as_it_was(tmp_path: Path) -> None:
    ingest_all(tmp_path, FIRST)
    before = [path.read_bytes() for path in outputs(tmp_path)]
    with pytest.raises(DataError):
        ingest_all(tmp_path, FIRST, b"no FASTA\n")
    assert [path.read_bytes() for path in outputs(tmp_path)] == before


def test_told_to_refuse_it_ends_well_and_leaves_the_reason_in_files_without_rows(tmp_path: Path) -> None:
    good = ingest_all(tmp_path, FIRST)
    assert [refusal(path) for path in outputs(tmp_path)] == [None, None]
    (tmp_path / "page.fa").write_bytes(b"<html>\n")
    result = ingest_here(tmp_path, [tmp_path / "page.fa"], "--refuse")
    assert result.returncode == 0
    assert "error: " not in result.stderr
    for path, table in zip(outputs(tmp_path), good, strict=True):
        line = refusal(path)
        assert line
        assert line.startswith(f"sample s: {tmp_path / 'page.fa'}: is HTML")
        assert f"left out: {line}" in result.stderr
        empty = pq.read_table(path)
        assert (len(empty), empty.schema) == (0, table.schema)
    with pytest.raises(DataError, match="is HTML"):
        keys_of(outputs(tmp_path)[0], "a")


@pytest.mark.parametrize("target", ["missing.fa", "."])
def test_a_file_that_is_not_there_or_no_file_is_bad_data(tmp_path: Path, target: str) -> None:
    result = ingest_here(tmp_path, [tmp_path / target])
    assert result.returncode == 65
    assert str(tmp_path / target) in result.stderr.splitlines()[-1]
    assert files_left(tmp_path) == []


# The smaller ones fill what is buffered, too.
@pytest.mark.parametrize(
    ("header", "residues", "sizes"),
    [pytest.param(30, 300, (20, 36), id="proteins"), pytest.param(10_000, 100, (30, 70), id="long headers")],
)
def test_memory_does_not_grow_with_the_file(tmp_path: Path, header: int, residues: int, sizes: tuple[int, int]) -> None:
    small, large = (
        peak_megabytes(
            command(
                tmp_path / str(size),
                write_proteins(tmp_path / f"{size}.fa", size, header=header, residues=residues),
            )
        )
        for size in sizes
    )
    assert large - small < 25 / 40 * (sizes[1] - sizes[0])


def test_a_file_that_is_no_fasta_ends_with_65_and_one_line(tmp_path: Path) -> None:
    (tmp_path / "reads.fq").write_bytes(b"@read\nACGT\n+\nIIII\n")
    result = run(command(tmp_path, tmp_path / "reads.fq", log=tmp_path / "log"))
    assert result.returncode == 65
    [line] = result.stderr.splitlines()
    assert "reads.fq" in line
    assert (tmp_path / "log").read_text() == result.stderr
    assert sorted(path.name for path in files_left(tmp_path)) == ["log", "reads.fq"]


def test_invalid_records_end_with_65_if_that_is_asked(tmp_path: Path) -> None:
    (tmp_path / "a.fa").write_bytes(SECOND)
    assert ingest_here(tmp_path, [tmp_path / "a.fa"], "--invalid", "fail").returncode == 65
    assert files_left(tmp_path) == [tmp_path / "a.fa"]
    assert ingest_here(tmp_path, [tmp_path / "a.fa"], "--invalid", "skip").returncode == 0


def assert_ended_for_want_of_space(result: subprocess.CompletedProcess[str], directory: Path) -> None:
    assert result.returncode == 73, result.stderr
    [line] = result.stderr.splitlines()
    assert "cannot be written" in line
    assert files_left(directory / "out") == []


def test_the_file_size_limit_ends_with_73_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    proteins = write_proteins(tmp_path / "a.fa", 3)
    limit = (1 << 19, 1 << 19)
    result = run(command(tmp_path, proteins), lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
    assert_ended_for_want_of_space(result, tmp_path)


def test_a_full_disk_ends_with_73_and_leaves_nothing_half_written(tmp_path: Path, small_disk: Path) -> None:
    proteins = write_proteins(tmp_path / "a.fa", 3)
    result = ingest_here(small_disk, [proteins])
    assert_ended_for_want_of_space(result, small_disk)
    assert "disk is full" in result.stderr


def nucleotides(count: int) -> bytes:
    draw = random.Random(count)
    return b"".join(b">n%d\n%s\n" % (i, "".join(draw.choices("ACGT", k=90)).encode()) for i in range(count))


def proteins(count: int) -> bytes:
    draw = random.Random(count)
    return b"".join(
        b">p%d\n%s\n" % (i, "".join(draw.choices("ACDEFGHIKLMNPQRSTVWY", k=90)).encode()) for i in range(count)
    )


@pytest.mark.parametrize(("genes", "others", "refused"), [(1, 0, True), (18, 2, True), (17, 2, False), (1, 20, False)])
def test_a_file_of_which_nine_in_ten_records_are_nucleotides_is_refused(
    tmp_path: Path, genes: int, others: int, refused: bool
) -> None:
    short = b">short\nMKV\n>gap\nM-" + b"K" * 40 + b"\n"
    content = proteins(others) + short + nucleotides(genes)
    if refused:
        with pytest.raises(DataError, match=rf"1\.fa: {genes} of {genes + others} records .*nucleotides.*'protein'"):
            ingest_all(tmp_path, FIRST, content)
        assert sorted(path.name for path in files_left(tmp_path)) == ["0.fa", "1.fa"]
    else:
        catalog, _ = ingest_all(tmp_path, FIRST, content)
        assert catalog["flags"].to_pylist()[3 + others :] == ["", "", *["nucleotides?"] * genes]


def test_nucleotides_are_taken_for_proteins_where_that_is_said_outright(tmp_path: Path) -> None:
    (tmp_path / "n.fa").write_bytes(nucleotides(3))
    (tmp_path / "p.fa").write_bytes(proteins(3))
    files = [tmp_path / "p.fa", tmp_path / "n.fa"]
    for kinds, code in ((["protein?", "protein?"], 65), (["protein", "protein?"], 65), (["protein"] * 3, 78)):
        assert ingest_here(tmp_path, files, "--kind", *kinds).returncode == code
    for kinds in (["protein?", "protein"], ["protein"]):
        assert ingest_here(tmp_path, files, "--kind", *kinds).returncode == 0
        catalog = pq.read_table(outputs(tmp_path)[0])
        assert catalog["status"].to_pylist() == ["valid"] * 6
        assert catalog["flags"].to_pylist() == [*[""] * 3, *["nucleotides?"] * 3]


@pytest.mark.parametrize(
    ("compressor", "fastest"),
    [
        pytest.param(module, options, id=module.__name__)
        for module, options in ((gzip, {"compresslevel": 1}), (bz2, {}), (lzma, {"preset": 0}), (zstandard, {}))
    ],
)
def test_one_endless_record_of_little_compressed_is_skipped_in_bounded_memory(
    tmp_path: Path, compressor: ModuleType, fastest: dict[str, int]
) -> None:
    with compressor.open(tmp_path / "bomb.fa", "wb", **fastest) as file:
        file.write(b">a\nM\n>bomb\n")
        for _ in range(100):
            file.write(b"M" * (1 << 20))
        file.write(b"\n>b\nK\n")
    assert (tmp_path / "bomb.fa").stat().st_size < 2 << 20
    assert peak_megabytes(command(tmp_path, tmp_path / "bomb.fa")) < 600
    catalog, _ = (pq.read_table(path) for path in outputs(tmp_path))
    assert catalog["id"].to_pylist() == ["a", "bomb", "b"]
    assert catalog["reason"].to_pylist() == [None, "more than 100,000,000 characters", None]


def test_an_output_directory_that_is_a_file_ends_with_73(tmp_path: Path) -> None:
    (tmp_path / "a.fa").write_bytes(FIRST)
    (tmp_path / "out").write_bytes(b"")
    result = ingest_here(tmp_path, [tmp_path / "a.fa"])
    assert result.returncode == 73
    assert len(result.stderr.splitlines()) == 1

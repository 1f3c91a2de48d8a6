"""Contigs: read in constant memory whatever their length, each with its row."""

import gzip
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from esmflow.errors import DataError
from esmflow.inputs import fasta, nucleotides
from esmflow.inputs.catalog import CATALOG, ORIGIN
from esmflow.inputs.fasta import Fasta
from ingestion import Rows, catalog_of, command, ingest_here, outputs, peak_megabytes


def rows(directory: Path, content: bytes, kind: str = "six_frame", **options: Any) -> Rows:
    (directory / "a.fna").write_bytes(content)
    return catalog_of(directory, Fasta(directory / "a.fna", kind, **options))


def read(path: Path, content: bytes) -> Iterator[tuple[nucleotides.Contig, bytes]]:
    path.write_bytes(content)
    for contig in nucleotides.contigs(path, path.parent):
        yield contig, contig.read(0, contig.length)


@pytest.mark.parametrize(
    ("text", "letters", "flags"),
    [
        (b"ACGT\nNNRYSWKMBDHV\n", b"ACGTNNRYSWKMBDHV", ()),
        (b"acgTn\n", b"ACGTN", ("lowercase",)),
        (b"ACGU\n", b"ACGT", ("U_to_T",)),
        (b"AC GT\tA\n", b"ACGTA", ("whitespace",)),
        (b"AC\r\n\r\nGT\r\n", b"ACGT", ()),
        (b"AC\n;old\n--\nGT", b"ACGT", ("comment", "separator")),
    ],
)
def test_letters_become_upper_case_dna_and_each_change_is_a_flag(
    tmp_path: Path, text: bytes, letters: bytes, flags: tuple[str, ...]
) -> None:
    [(contig, content)] = read(tmp_path / "a.fna", b">c1 a contig\n" + text)
    assert (contig.id, contig.description, contig.length) == ("c1", "a contig", len(letters))
    assert (content, contig.flags, contig.reason) == (letters, flags, None)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (b">c\n\n", "no nucleotides"),
        (b">\nACGT\n", "no id"),
        (b">c\nACGE\n", "not a nucleotide"),
        (b">c\nACGX\n", "not a nucleotide"),
        (b">c\nAC-GT\n", "gap"),
        (b">c\nAC.GT\n", "gap"),
        (b">c\n1 ACGT\n", "digit"),
        (b">c\nACGT*\n", "invalid character"),
        (b">c\nAC\xffGT\n", "invalid character"),
        (b">c\nAC\xc3\xa9GT\n", "invalid character"),
    ],
)
def test_a_contig_that_cannot_be_used_is_a_row_with_its_reason(tmp_path: Path, record: bytes, reason: str) -> None:
    found = rows(tmp_path, b">a\nATG\n" + record + b">b\nATG\n")
    [bad] = found[2:-2]
    assert [row["id"] for row in found if row is not bad] == [
        "a_chunk_1F1",
        "a_chunk_1R1",
        "b_chunk_1F1",
        "b_chunk_1R1",
    ]
    assert (bad["status"], bad["reason"], bad["length"]) == ("skipped", reason, 0)
    assert bad["contig"] == bad["id"]
    assert [bad[name] for name in ("start", "end", "strand", "frame")] == [None] * 4


def test_a_contig_without_fragments_is_a_row_and_nothing_to_mend(tmp_path: Path) -> None:
    stops = b"TTAATTAATTAA"
    path = tmp_path / "a.fna"
    path.write_bytes(b">c of stops\n" + stops + b"\n")
    [row] = catalog_of(tmp_path, Fasta(path, "six_frame"), fail_on_invalid=True)
    assert (row["id"], row["description"], row["status"], row["reason"]) == (
        "c",
        "of stops",
        "skipped",
        "no open frame",
    )
    assert (row["contig"], row["start"], row["end"], row["strand"], row["frame"]) == ("c", 1, 12, None, None)
    path.write_bytes(b">c\n" + stops + b"\n>d\nACG-\n")
    with pytest.raises(DataError, match="1 of 2 records are invalid"):
        catalog_of(tmp_path, Fasta(path, "six_frame"), fail_on_invalid=True)


def test_a_catalog_has_the_columns_of_contigs_only_where_there_are_some(tmp_path: Path) -> None:
    for name, content in (("p.faa", b">p\nMKV\n"), ("n.fna", b">n\nATGAAA\n")):
        (tmp_path / name).write_bytes(content)
    protein, contig = Fasta(tmp_path / "p.faa"), Fasta(tmp_path / "n.fna", "six_frame")
    catalog_of(tmp_path, protein)
    assert pq.read_schema(outputs(tmp_path)[0]).names == CATALOG.names
    first, second, *_ = catalog_of(tmp_path, protein, contig)
    assert pq.read_schema(outputs(tmp_path)[0]).names == CATALOG.names + ORIGIN.names
    assert [first[name] for name in ORIGIN.names] == [None] * 5
    assert [second[name] for name in ORIGIN.names] == ["n", 1, 6, "+", 1]


def test_the_second_of_two_neighbouring_contigs_with_one_id_is_told(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b">c\nATG\n>c\nATG\n>d\nATG\n>c\nATG\n")
    found = catalog_of(tmp_path, *(Fasta(tmp_path / name, "six_frame") for name in ("a", "b")))
    assert [row["contig"] for row in found] == [name for name in "ccdcccdc" for _ in range(2)]
    assert [row["flags"] for row in found if row["id"].endswith("F1")] == [
        "", "another_contig", "", "", "another_contig", "another_contig", "", ""
    ]  # fmt: skip
    assert {row["flags"] for row in found if row["id"].endswith("R1")} == {""}


@pytest.mark.parametrize(("count", "contigs", "refused"), [(1, 0, True), (18, 2, True), (17, 2, False), (2, 20, False)])
def test_a_file_of_which_nine_in_ten_records_are_proteins_is_refused(
    tmp_path: Path, count: int, contigs: int, refused: bool
) -> None:
    content = b">short\nMKV\n" + b"".join(b">n%d\n%s\n" % (number, b"ACGTN" * 8) for number in range(contigs))
    draw = random.Random(1)
    for number in range(count):
        content += f">p{number}\n{''.join(draw.choices('ACDEFGHIKLMNPQRSTVWY', k=90))}\n".encode()
    if refused:
        with pytest.raises(DataError, match=rf"a\.fna: {count} of {count + contigs} records .* no nucleotides"):
            rows(tmp_path, content)
    else:
        flags = [row["flags"] for row in rows(tmp_path, content) if row["id"].startswith("p")]
        assert flags == ["protein?"] * count


def test_a_contig_in_parts_is_the_contig_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(3)
    content, expected = b"", []
    for number in range(60):
        lines = [
            "".join(draw.choices("ACGTacgtNUR", k=draw.choice([0, 3, 60, 200]))) for _ in range(draw.randint(1, 9))
        ]
        lines.insert(draw.randrange(len(lines)), draw.choice(["", ";comment > x", "--", "  "]))
        end = draw.choice(["\n", ""])
        content += f">c{number}\n{chr(10).join(lines)}{end}".encode()
        kept = [line for line in lines if line.strip() and line != "--" and not line.startswith(";")]
        expected.append((f"c{number}", "".join(kept).upper().replace("U", "T").encode()))
    for chunk in (1, 50, 1 << 20):
        monkeypatch.setattr(fasta, "_CHUNK", chunk)
        for long in (10, 100, 1 << 18):
            monkeypatch.setattr(fasta, "_LONG", long)
            assert [(contig.id, letters) for contig, letters in read(tmp_path / "a.fna", content)] == expected


def write_contig(path: Path, megabytes: int, line: int) -> Path:
    """A FASTA of one contig of so many letters, compressed, in lines of that length or in one."""
    block = bytes(random.Random(20).choices(b"ACGT", k=1 << 20))
    lines = b"\n".join(block[at : at + line] for at in range(0, 1 << 20, line)) + b"\n" * (line < 1 << 20)
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b">c\n" + lines * megabytes + b"\n>after\nATGAAA\n")
    return path


@pytest.mark.parametrize("line", [128, 1 << 20], ids=["lines of 128", "one line"])
def test_memory_does_not_grow_with_a_contig(tmp_path: Path, line: int) -> None:
    small, large = (
        peak_megabytes(
            [
                *command(tmp_path / str(size), write_contig(tmp_path / f"{size}.fna.gz", size, line)),
                *("--kind", "six_frame", "--chunk", "500"),
            ]
        )
        for size in (10, 30)
    )
    # Half of what the letters more take that the larger has.
    assert large - small < 10
    assert large < 250
    catalog = pq.read_table(outputs(tmp_path / "30")[0]).to_pylist()
    assert catalog[-1]["contig"] == "after"
    assert max(row["end"] for row in catalog) > 29 << 20


def test_a_header_without_end_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fasta, "MAX_CHARACTERS", 300_000)
    monkeypatch.setattr(fasta, "_CHUNK", 1000)
    content = b">a\nACGT\n>b" + b" d" * 500_000 + b"\nACGT\n>c\n" + b"ACGT" * 200_000 + b"\n"
    found = [(contig.id, contig.reason, contig.length) for contig, _ in read(tmp_path / "a.fna", content)]
    assert found == [("a", None, 4), ("b", "header of more than 300,000 characters", 4), ("c", None, 800_000)]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--kind", "six_frame", "--code", "7"], 78),
        (["--kind", "six_frame", "--code", "one"], 78),
        (["--kind", "protein", "--code", "1"], 78),
        (["--kind", "six_frame", "--code", "1", "11"], 78),
        (["--kind", "six_frame", "--code", "11"], 0),
    ],
)
def test_a_genetic_code_that_there_is_not_ends_with_78(tmp_path: Path, options: list[str], code: int) -> None:
    (tmp_path / "a.fna").write_bytes(b">a\nATGAAA\n")
    result = ingest_here(tmp_path, [tmp_path / "a.fna"], *options, "--log", str(tmp_path / "log"))
    assert result.returncode == code
    assert "Traceback" not in result.stderr

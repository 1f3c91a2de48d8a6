"""Ingest of what no one would write by hand: mutated real FASTA files and arbitrary bytes."""

import contextlib
import gzip
import io
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from Bio.SeqIO.FastaIO import SimpleFastaParser
from conftest import ROOT
from esmflow.errors import DataError
from esmflow.inputs import fasta
from esmflow.inputs.catalog import ingest
from hypothesis import given, settings
from hypothesis import strategies as st

DEMO = ROOT / "config" / "demo"
FILES = 10_000
SNIPPETS = [
    *(b">", b"\n>", b">\n", b"\n", b"\r", b"\r\n", b" ", b"\t", b"\0", b"\x0b", b"\x0c", b"\x1c", b"\x1a", b"\\", b";"),
    *(b"*", b"-", b".", b"?", b"1", b"J", b"j", b"\xff", b"\xc3", b"\xef\xbb\xbf", b"\x1f\x8b", b"\xfd7zXZ\0"),
    *("\u2028".encode(), "\x85".encode(), "\xa0".encode(), "ß".encode(), "Ω".encode()),
]


def reference(content: bytes) -> Iterator[tuple[str, str] | None]:
    """The ID and residues of each record, None for an invalid one."""
    for title, text in SimpleFastaParser(io.TextIOWrapper(io.BytesIO(content), "utf-8-sig", "backslashreplace")):
        residues = "".join(text.split()).removesuffix("*")
        valid = title[:1].strip() and residues.isascii() and residues.isalpha()
        yield (title.split()[0], residues.upper().replace("J", "X")) if valid else None


def is_fasta(content: bytes) -> bool:
    """Whether there is nothing, or a header, before anything else."""
    text = content.removeprefix(b"\xef\xbb\xbf").decode(errors="backslashreplace").replace("\r", "\n")
    return re.match(r"\s*(\Z|(?<![^\n])>)", text) is not None


def mutate(draw: random.Random, content: bytes) -> bytes:
    """One change of a kind that transfers, editors and programs make."""
    at = draw.randrange(len(content) + 1)
    end = min(len(content), at + draw.choice([1, 2, 10, 100]))
    before, span, after = content[:at], content[at:end], content[end:]
    return draw.choice(
        [
            lambda: before + bytes(byte ^ 1 << draw.randrange(8) for byte in span) + after,
            lambda: before + draw.choice(SNIPPETS) + span + after,
            lambda: before + after,
            lambda: before + span + span + after,
            lambda: before + draw.randbytes(len(span)) + after,
            lambda: before + span.lower() + after,
            lambda: before + after + span,
            lambda: before,
            lambda: content.replace(b"\n", draw.choice([b"\r\n", b"\r", b"\n\n", b""])),
        ]
    )()


def refusal(path: Path) -> str | None:
    """Why a file is refused as a whole."""
    try:
        for entry in fasta.read(path):
            fasta.clean(entry)
    except DataError as error:
        return str(error)
    return None


def outputs(directory: Path) -> tuple[Path, Path]:
    return directory / "catalog.parquet", directory / "sequences.parquet"


def assert_as_the_reference(directory: Path, expected: list[tuple[str, str] | None]) -> None:
    """Every record is there, in order; the valid ones with their ID and residues, the others with a reason."""
    catalog, sequences = (pq.read_table(path).to_pylist() for path in outputs(directory))
    assert [row["index"] for row in catalog] == list(range(len(expected)))
    residues = {row["key"]: row["residues"].decode() for row in sequences}
    found = [(row["id"], residues[row["key"]]) if row["status"] == "valid" else None for row in catalog]
    assert found == expected
    assert all(row["status"] == "valid" or row["reason"] for row in catalog)
    assert len(sequences) == sum(record is not None for record in expected)


def test_ten_thousand_mutated_files_are_ingested_as_biopython_reads_them_or_refused(tmp_path: Path) -> None:
    draw = random.Random(5)
    compressed = (DEMO / "demo_b.fasta.gz").read_bytes()
    records = re.split(rb"(?m)^(?=>)", (DEMO / "demo_a.fasta").read_bytes() + gzip.decompress(compressed))[1:]
    good: list[Path] = []
    expected: list[tuple[str, str] | None] = []
    refused = 0
    for number in range(FILES):
        content = b"".join(draw.sample(records, draw.randint(1, 3)))
        if zipped := number % 20 == 0:
            content = gzip.compress(content, 1)
        for _ in range(draw.randint(1, 4)):
            content = mutate(draw, content)
        path = tmp_path / f"{number}.fa"
        path.write_bytes(content)
        if line := refusal(path):
            refused += 1
            assert line.startswith(f"{path}: ")
            assert line.isprintable()
            assert zipped or not is_fasta(content) or content.startswith((b"\x1f\x8b", b"\xfd7zXZ"))
            continue
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
        good.append(path)
        expected += reference(content)
    assert refused < FILES / 4
    ingest("s", good, *outputs(tmp_path), fail_on_invalid=False)
    assert_as_the_reference(tmp_path, expected)
    assert expected.count(None) > FILES / 10


@settings(deadline=None)
@given(content=st.one_of(st.binary(), st.lists(st.sampled_from([b">", b"M", b"k", b">a\n", *SNIPPETS])).map(b"".join)))
def test_arbitrary_bytes_are_ingested_as_biopython_reads_them_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    directory = tmp_path_factory.getbasetemp() / "arbitrary"
    directory.mkdir(exist_ok=True)
    path = directory / "a.fa"
    path.write_bytes(content)
    if line := refusal(path):
        assert line.isprintable()
        assert not is_fasta(content)
        with pytest.raises(DataError, match=re.escape(line)):
            ingest("s", [path], *outputs(directory), fail_on_invalid=False)
    else:
        ingest("s", [path], *outputs(directory), fail_on_invalid=False)
        assert_as_the_reference(directory, list(reference(content)))


@settings(deadline=None)
@given(content=st.binary(min_size=1), at=st.integers(0), value=st.integers(1, 255))
def test_one_changed_byte_of_a_gzip_file_is_refused_or_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, at: int, value: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "changed.fa"
    whole = bytearray(gzip.compress(b">a " + content.replace(b"\n", b" ") + b"\nMKV\n", mtime=0))
    path.write_bytes(whole)
    intact = list(fasta.read(path))
    whole[at % len(whole)] ^= value
    path.write_bytes(whole)
    with contextlib.suppress(DataError):
        assert list(fasta.read(path)) == intact

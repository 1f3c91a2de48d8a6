"""Ingest of what no one would write by hand: mutated real FASTA files and arbitrary bytes."""

import bz2
import contextlib
import gzip
import lzma
import os
import random
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import zstandard
from conftest import ROOT
from esmflow.errors import DataError
from esmflow.inputs import fasta
from esmflow.inputs.catalog import ingest
from esmflow.inputs.samples import Fasta
from hypothesis import example, given
from hypothesis import strategies as st

DEMO = ROOT / "config" / "demo"
#: ESMFLOW_FUZZ_FILES=20000 takes some minutes.
FILES = int(os.environ.get("ESMFLOW_FUZZ_FILES", "500"))
SNIPPETS = [
    *(b">", b"\n>", b">\n", b"\n", b"\r", b"\r\n", b" ", b"\t", b"\0", b"\x0b", b"\x0c", b"\x1c", b"\x1a", b"\\", b";"),
    *(b"*", b"-", b".", b"?", b"1", b"J", b"j", b"\xff", b"\xc3", b"\xef\xbb\xbf", b"\x1f\x8b", b"\xfd7zXZ\0"),
    *("\u2028".encode(), "\x85".encode(), "\xa0".encode(), "ß".encode(), "Ω".encode()),
    *(
        b"\n;a comment\n",
        b"\n ;one > two\n",
        b"\n--\n",
        b"\n -- \r",
        b"--",
        b"\n \t>b c\n",
        b">b c\n",
        b"> ",
        b"\n> b\n",
    ),
    *(
        b"\xef\xbb\xbf>",
        b"\n\xef\xbb\xbf \n>d\n",
        b"\xef\xbb\xbf;a comment\n",
        b"\n>P1;d\ntitle\n",
        b"BZh9",
        b"\x28\xb5\x2f\xfd",
    ),
]
MAGIC = (b"\x1f\x8b", b"\xfd7zXZ\0", b"BZh", b"\x28\xb5\x2f\xfd")
COMPRESS = [gzip.compress, bz2.compress, lzma.compress, zstandard.ZstdCompressor(write_checksum=True).compress]
BLANKS = "".join(chr(code) for code in range(0x10000) if chr(code).isspace()) + "\ufeff"


def reference(content: bytes) -> list[tuple[str, str] | None] | None:
    """The ID and residues of each record, None for an invalid one; None if residues stand before the first header.

    Line by line, as docs/inputs.md has it.
    """
    text = content.decode("utf-8-sig", "backslashreplace").replace("\r\n", "\n").replace("\r", "\n")
    entries: list[list[str]] = []
    for line in text.split("\n"):
        if line.strip(BLANKS) == "--" or line.lstrip(BLANKS).startswith(";"):
            continue
        residues, mark, header = line.partition(">")
        if entries:
            entries[-1][1] += residues
        elif residues.strip(BLANKS):
            return None
        if mark:
            entries.append([header, ""])
    rows: list[tuple[str, str] | None] = []
    for header, text in entries:
        residues = "".join(text.rstrip(BLANKS).split()).removesuffix("*")
        words = header.lstrip(BLANKS).split()
        valid = words and residues.isascii() and residues.isalpha()
        rows.append((visible(words[0]), residues.upper().replace("J", "X")) if valid else None)
    return rows


def visible(identifier: str) -> str:
    return "".join(f"\\x{ord(c):02x}" if ord(c) < 32 or 127 <= ord(c) < 160 else c for c in identifier)


def is_refused_rightly(content: bytes) -> bool:
    """Whether it is no FASTA, or may be UTF-16, other binary data, or PIR in part."""
    if content.startswith(MAGIC) or reference(content) is None:
        return True
    return re.search(rb"[\0-\x08\x0e-\x1a\x7f]|>(P1|F1|D1|DL|DC|RL|RC|N1|N3|XX);", content) is not None


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


def test_mutated_files_are_ingested_as_a_second_parser_reads_them_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(5)
    compressed = (DEMO / "demo_b.fasta.gz").read_bytes()
    records = re.split(rb"(?m)^(?=>)", (DEMO / "demo_a.fasta").read_bytes() + gzip.decompress(compressed))[1:]
    good: list[Fasta] = []
    expected: list[tuple[str, str] | None] = []
    refused = 0
    for number in range(FILES):
        content = b"".join(draw.sample(records, draw.randint(1, 3)))
        for _ in range(draw.randint(1, 4)):
            content = mutate(draw, content)
        rows, rightly = reference(content), is_refused_rightly(content)
        damaged = False
        if not content.startswith(MAGIC) and draw.random() < 0.2:
            content = draw.choice(COMPRESS)(content)
            if damaged := draw.random() < 0.5:
                content = mutate(draw, content)
        path = tmp_path / f"{number}.fa"
        path.write_bytes(content)
        monkeypatch.setattr(fasta, "_CHUNK", draw.choice([1, 7, 100, 1 << 20]))
        monkeypatch.setattr(fasta, "_LONG", draw.choice([30, 1 << 18]))
        if line := refusal(path):
            refused += 1
            assert line.startswith(f"{path}: ")
            assert line.isprintable()
            assert "FASTA" in line
            assert damaged or rightly
        elif not damaged:
            assert rows is not None
            good.append(Fasta(path, "protein"))
            expected += rows
    assert refused < FILES / 3
    ingest("s", good, *outputs(tmp_path), fail_on_invalid=False)
    assert_as_the_reference(tmp_path, expected)
    assert expected.count(None) > FILES / 10


@given(
    content=st.one_of(st.binary(), st.lists(st.sampled_from([b">", b"M", b"k", b">a\n", *SNIPPETS])).map(b"".join)),
    chunk=st.integers(1, 20),
    long=st.sampled_from([10, 1 << 18]),
)
@example(content=b"\t" * 10, chunk=1, long=10)
def test_arbitrary_bytes_are_ingested_as_a_second_parser_reads_them_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, chunk: int, long: int
) -> None:
    directory = tmp_path_factory.getbasetemp() / "arbitrary"
    directory.mkdir(exist_ok=True)
    path = directory / "a.fa"
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fasta, "_CHUNK", chunk)
        patch.setattr(fasta, "_LONG", long)
        if line := refusal(path):
            assert line.isprintable()
            assert is_refused_rightly(content)
            with pytest.raises(DataError, match=re.escape(line)):
                ingest("s", [Fasta(path)], *outputs(directory), fail_on_invalid=False)
        else:
            rows = reference(content)
            assert rows is not None
            ingest("s", [Fasta(path)], *outputs(directory), fail_on_invalid=False)
            assert_as_the_reference(directory, rows)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
def test_other_encodings_are_refused_by_name(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.fa"
    path.write_text((DEMO / "demo_a.fasta").read_text(), encoding=encoding)
    assert f"UTF-{encoding[4:6]} text, not FASTA" in (refusal(path) or "")


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

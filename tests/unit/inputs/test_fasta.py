"""The FASTA parser and the cleaning of records."""

import bz2
import gzip
import hashlib
import io
import lzma
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from Bio import bgzf
from Bio.SeqIO.FastaIO import SimpleFastaParser
from esmflow.errors import DataError
from esmflow.inputs import fasta
from hypothesis import given
from hypothesis import strategies as st

PLAIN = b">a first\nMKV\nLAG\n>b\nWWW\n"


def raw(path: Path, content: bytes) -> list[tuple[str, str]]:
    path.write_bytes(content)
    return [(entry.header, entry.text) for entry in fasta.read(path)]


def records(path: Path, content: bytes) -> list[fasta.Record]:
    path.write_bytes(content)
    return [fasta.clean(entry) for entry in fasta.read(path)]


def cleaned(sequence: str, header: str = "a") -> fasta.Record:
    return fasta.clean(fasta.RawRecord(1, header, sequence))


def blocks(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with bgzf.BgzfWriter(fileobj=buffer) as writer:
        writer.write(content)
        writer.flush()
        return buffer.getvalue()


def proteins(count: int) -> bytes:
    letters = random.Random(count)
    return b"".join(
        b">p%d\n%s\n" % (i, "".join(letters.choices("ACDEFGHIKLMNPQRSTVWY", k=300)).encode()) for i in range(count)
    )


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "bgz": blocks,
    "xz": lzma.compress,
    "zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}


@pytest.mark.parametrize("suffix", ["", ".fasta", ".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("kind", COMPRESS)
def test_compression_is_told_by_content_not_by_name(tmp_path: Path, kind: str, suffix: str) -> None:
    expected = [("a first", "MKVLAG"), ("b", "WWW")]
    assert raw(tmp_path / f"proteins{suffix}", COMPRESS[kind](PLAIN)) == expected


@pytest.mark.parametrize("kind", ["gz", "bgz", "bz2", "xz", "zst"])
def test_compressed_parts_laid_end_to_end_are_read_to_the_last(tmp_path: Path, kind: str) -> None:
    parts = [b">a\nMK", b"V\n>b\nLA\n", b"", b">c\nW\n"]
    content = b"".join(COMPRESS[kind](part) for part in parts)
    assert raw(tmp_path / "a.fa", content) == [("a", "MKV"), ("b", "LA"), ("c", "W")]


def test_zstd_of_unknown_size_and_with_a_long_window_is_read(tmp_path: Path) -> None:
    text = proteins(400)
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=27, enable_ldm=True, write_checksum=True)
    writer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    assert len(raw(tmp_path / "a.fa", writer.compress(text) + writer.flush())) == 400


@pytest.mark.parametrize("share", [0.0005, 0.3, 0.6, 0.9, 0.99999])
@pytest.mark.parametrize("kind", ["gz", "bz2", "xz", "zst"])
def test_a_compressed_file_cut_short_is_refused(tmp_path: Path, kind: str, share: float) -> None:
    whole = COMPRESS[kind](proteins(2000))
    path = tmp_path / "cut.fa"
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(DataError, match=r"cut\.fa: .*cut short or damaged"):
        list(fasta.read(path))


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz", "zst"])
def test_a_second_compressed_part_cut_short_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "cut.fa"
    path.write_bytes(COMPRESS[kind](proteins(200)) + COMPRESS[kind](proteins(300))[:-20])
    with pytest.raises(DataError, match="cut short or damaged"):
        list(fasta.read(path))


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz", "zst"])
def test_a_damaged_compressed_file_is_refused(tmp_path: Path, kind: str) -> None:
    whole = bytearray(COMPRESS[kind](proteins(200)))
    for place in range(len(whole) // 2, len(whole) // 2 + 40):
        whole[place] ^= 0x5A
    path = tmp_path / "bad.fa"
    path.write_bytes(whole)
    with pytest.raises(DataError, match=r"bad\.fa") as caught:
        list(fasta.read(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("middle", [b"damaged", b"\1" * 400, None])
@pytest.mark.parametrize("kind", ["gz", "bz2", "xz", "zst"])
def test_a_damaged_part_is_not_passed_over_with_what_follows(tmp_path: Path, kind: str, middle: bytes | None) -> None:
    first, second, third = (COMPRESS[kind](proteins(count)) for count in (40, 50, 60))
    path = tmp_path / "bad.fa"
    path.write_bytes(first + (middle + second if middle else b"\xff" + second[1:]) + third)
    with pytest.raises(DataError, match=r"bad\.fa: .*cut short or damaged"):
        list(fasta.read(path))


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_zeros_between_and_after_compressed_parts_are_padding(tmp_path: Path, kind: str) -> None:
    content = b"".join(COMPRESS[kind](part) + bytes(200_000) for part in (b">a\nMK", b"V\n>b\nLA\n"))
    assert raw(tmp_path / "a.fa", content) == [("a", "MKV"), ("b", "LA")]


def test_zstd_frames_without_checksum_and_frames_to_be_skipped_are_read(tmp_path: Path) -> None:
    skipped = b"\x5f\x2a\x4d\x18\4\0\0\0abcd"
    content = skipped + zstandard.compress(b">a\nMK") + skipped + zstandard.compress(b"V\n>b\nLA\n") + skipped
    assert raw(tmp_path / "a.fa", content) == [("a", "MKV"), ("b", "LA")]


def test_bgzf_without_its_last_block_is_read_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = [("a first", "MKVLAG"), ("b", "WWW")]
    assert raw(tmp_path / "cut.fa", blocks(PLAIN)) == expected
    assert "cut.fa: ends without the last block" in caplog.text
    caplog.clear()
    with bgzf.BgzfWriter(tmp_path / "whole.fa") as writer:
        writer.write(PLAIN)
    assert raw(tmp_path / "copy.fa", (tmp_path / "whole.fa").read_bytes()) == expected
    assert not caplog.text


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(b">a b\r\nMK\r\nV\r\n>c\r\nW\r\n", [("a b", "MKV"), ("c", "W")], id="CRLF"),
        pytest.param(b">a b\rMK\rV\r>c\rW\r", [("a b", "MKV"), ("c", "W")], id="lone CR"),
        pytest.param(b">a\nMK\r\nV\r>c\nW", [("a", "MKV"), ("c", "W")], id="mixed line ends"),
        pytest.param(b"\n\n>a\n\nMK\n\n\nV\n\n>c\nW\n\n", [("a", "MKV"), ("c", "W")], id="blank lines"),
        pytest.param(b" \n\t\n>a\nM\n", [("a", "M")], id="white space before the first record"),
        pytest.param(b"\xef\xbb\xbf>a\nM\n", [("a", "M")], id="BOM"),
        pytest.param(b">a\nMKV", [("a", "MKV")], id="last line without newline"),
        pytest.param(b">a", [("a", "")], id="header only"),
        pytest.param(b">a\n>b\nM\n>c\n", [("a", ""), ("b", "M"), ("c", "")], id="empty records"),
        pytest.param(b">a\nM\n>a\nK\n>a\nM\n", [("a", "M"), ("a", "K"), ("a", "M")], id="repeated IDs"),
        pytest.param(b">>a>b\nM\n", [(">a>b", "M")], id="more than one >"),
        pytest.param(b"", [], id="empty file"),
        pytest.param(b"\xef\xbb\xbf", [], id="BOM only"),
        pytest.param(b"\n \n", [], id="blank file"),
        pytest.param(">protéine Δ\nM\n".encode(), [("protéine Δ", "M")], id="UTF-8 header"),
        pytest.param(
            b">a\x0bb\x0cc\x1cd\xc2\x85e\xe2\x80\xa8f\nM\n", [("a\vb\fc\x1cd\x85e\u2028f", "M")], id="odd ends"
        ),
    ],
)
def test_entries_are_read_as_they_stand(tmp_path: Path, content: bytes, expected: list[tuple[str, str]]) -> None:
    assert raw(tmp_path / "a.fa", content) == expected


def test_an_entry_tells_the_line_of_its_header(tmp_path: Path) -> None:
    (tmp_path / "a.fa").write_bytes(b"\n>a\r\nM\r\n\r\nK\r\n>b\r\n>c\r\nW")
    assert [entry.line for entry in fasta.read(tmp_path / "a.fa")] == [2, 6, 7]


@pytest.mark.parametrize("size", [10_000, 1_000_000])
def test_a_very_long_header_is_kept_whole(tmp_path: Path, size: int) -> None:
    [record] = records(tmp_path / "a.fa", b">a " + b"d" * size + b"\nM\n")
    assert (record.id, len(record.description), record.residues) == ("a", size, b"M")


BOM = b"\xef\xbb\xbf"
CUT, SPACE_ID, SPACE = "header_in_line", "space_before_id", "space_before_header"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"> P1 kinase\nMK\n>\t P2\nM\n", [("P1", "MK", [SPACE_ID]), ("P2", "M", [SPACE_ID])]),
        (b">" + BOM + b"a\nM\n", [("a", "M", [SPACE_ID])]),
        (b">a\nMK*>b c\nMV\n>c\nM\n", [("a", "MK", [CUT, "terminal_stop"]), ("b", "MV", [CUT]), ("c", "M", [])]),
        (b">a\nK> b >c\nM>d\nL", [("a", "K", [CUT]), ("b", "M", [CUT, SPACE_ID]), ("d", "L", [CUT])]),
        (b">a\n1>b\nM\n", [("a", "digit", [CUT]), ("b", "M", [CUT])]),
        (b">a b > c\nM\n>a >P2\nM\n>a x\x01b y\nK\n", [("a", "M", []), ("a", "M", []), ("a", "K", [])]),
        (b" >a\nM\n\t>b\nK\n", [("a", "M", [SPACE, "whitespace"]), ("b", "K", [SPACE])]),
        (b">a\nM\n" + BOM + b">b\nK\n", [("a", "M", []), ("b", "K", [])]),
        (b">a\nM" + BOM + b">b\nK\n", [("a", "M", [CUT]), ("b", "K", [CUT])]),
        (b">a\nM\n" + BOM + b"\n" + BOM + b" >b\nK\n", [("a", "M", ["whitespace"]), ("b", "K", [SPACE])]),
        (BOM + BOM + b">a\nM\n" + BOM, [("a", "M", [])]),
        (b">a\nM" + BOM + b"K\n", [("a", "invalid character", [])]),
        (b";c\n>a\n;C 1..2,\n;C 3)\nM\n ;x > y\nK\n>b\nL\n", [("a", "MK", ["comment"]), ("b", "L", [])]),
        (BOM + b";c\n>a\nM\n" + BOM + b";c\n>b\nK\n;>c", [("a", "M", ["comment"]), ("b", "K", ["comment"])]),
        (b"--\n>a\nM\n--\n>b\nK\n --", [("a", "M", ["separator"]), ("b", "K", ["separator"])]),
        (b">a\nM;K\n>b\n---\n>c\nM--\n", [("a", "invalid character", []), ("b", "gap", []), ("c", "gap", [])]),
    ],
)
@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("chunk", [1, 3, 1 << 20])
def test_headers_marks_and_comments_are_told_by_flags(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: bytes,
    expected: list[tuple[str, str, list[str]]],
    newline: bytes,
    chunk: int,
) -> None:
    monkeypatch.setattr(fasta, "_CHUNK", chunk)
    found = records(tmp_path / "a.fa", content.replace(b"\n", newline))
    assert [(r.id, r.reason or r.residues.decode(), list(r.flags)) for r in found] == expected


def test_lines_are_counted_beyond_whatever_stands_between(tmp_path: Path) -> None:
    (tmp_path / "a.fa").write_bytes(b";c\n\n>a\nM>b\n;x>y\n--\nK\n  >c\nL\n>d\n")
    entries = [(entry.header, entry.line) for entry in fasta.read(tmp_path / "a.fa")]
    assert entries == [("a", 3), ("b", 4), ("c", 8), ("d", 10)]


@pytest.mark.parametrize("form", ["one line", "lines of 60", "a header"])
@pytest.mark.parametrize("chunk", [1000, 1 << 20])
def test_a_record_that_is_too_long_is_skipped_and_nothing_around_it_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, chunk: int
) -> None:
    monkeypatch.setattr(fasta, "MAX_CHARACTERS", 300_000)
    monkeypatch.setattr(fasta, "_CHUNK", chunk)
    text = {"one line": b"MKV" * 300_000, "lines of 60": b"\n".join([b"MKV" * 20] * 15_000), "a header": b"M"}[form]
    header = b"long" + b" d" * 500_000 * (form == "a header")
    content = b">before\nM\n>%s\n%s>in the line\nK\n>after\nL\n" % (header, text)
    found = records(tmp_path / "a.fa", content)
    assert [(r.id, r.residues, r.reason) for r in found] == [
        ("before", b"M", None),
        ("long", b"", "more than 300,000 characters"),
        ("in", b"K", None),
        ("after", b"L", None),
    ]
    lines = [entry.line for entry in fasta.read(tmp_path / "a.fa")]
    assert lines == [1, 3, 4 + text.count(b"\n"), 6 + text.count(b"\n")]


def test_a_record_just_short_enough_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fasta, "MAX_CHARACTERS", 300_000)
    monkeypatch.setattr(fasta, "_CHUNK", 1000)
    sequence = "".join(random.Random(0).choices("ACDEFGHIKLMNPQRSTVWY", k=299_990))
    first, _ = records(tmp_path / "a.fa", f">a\n{sequence}\n>b\nM\n".encode())
    assert first.residues.decode() == sequence


@pytest.mark.parametrize(
    ("header", "identifier"),
    [
        ("a\0b", r"a\x00b"),
        ("\x01", r"\x01"),
        ("a\x1bb\x7f c\x01d", r"a\x1bb\x7f"),
        ("a\x9fb", r"a\x9fb"),
        ("gi|1|\x01gi|2|", r"gi|1|\x01gi|2|"),
        ("a\u200bb", "a\u200bb"),
    ],
)
def test_control_characters_in_an_id_are_shown_by_their_numbers(header: str, identifier: str) -> None:
    record = cleaned("MKV", header)
    assert (record.id, record.residues) == (identifier, b"MKV")


@pytest.mark.parametrize(
    ("sequence", "expected"),
    [
        ("ACGT" * 8, True),
        ("acgu" * 8, True),
        ("N" * 30, True),
        ("ACGT" * 8 + "*", True),
        ("ACGT" * 7 + "A", False),
        ("ACGTACGTA" * 6 + "RYSWKM", True),
        ("ACGTACGTA" * 6 + "RYSWKMB", False),
        ("ACGT" * 100 + "E", False),
        ("I" + "ACGT" * 100, False),
        ("MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ", False),
    ],
)
def test_a_record_of_nothing_but_nucleotides_is_flagged(sequence: str, expected: bool) -> None:
    assert ("nucleotides?" in cleaned(sequence).flags) == expected


@pytest.mark.parametrize(
    ("header", "identifier", "description"),
    [
        ("sp|P12345|AATM_RABIT Aspartate OS=X", "sp|P12345|AATM_RABIT", "Aspartate OS=X"),
        ("a/b/../c", "a/b/../c", ""),
        ("a\tb c\td", "a", "b c\td"),
        ("a   b", "a", "b"),
        ("a ", "a", ""),
        ("a b ", "a", "b"),
        ('\'; DROP TABLE $(id) "x"', "';", 'DROP TABLE $(id) "x"'),
        ("prötein Δ", "prötein", "Δ"),
    ],
)
def test_a_header_is_split_at_its_first_white_space(header: str, identifier: str, description: str) -> None:
    record = cleaned("MKV", header)
    assert (record.id, record.description, record.reason) == (identifier, description, None)


def test_latin_1_in_a_header_does_not_stop_the_file(tmp_path: Path) -> None:
    first, second = records(tmp_path / "a.fa", b">prot\xe9ine caf\xe9\nMK\n>b\nM\n")
    assert first.id.startswith("prot")
    assert first.id.endswith("ine")
    assert "\ufffd" not in first.id
    assert (first.residues, second.id) == (b"MK", "b")
    first.id.encode("utf-8")


def test_ids_that_differ_in_one_byte_that_is_not_utf_8_stay_different(tmp_path: Path) -> None:
    first, second = records(tmp_path / "a.fa", b">p\xe9\nMK\n>p\xe8\nM\n")
    assert first.id != second.id


@pytest.mark.parametrize(
    ("sequence", "residues", "flags"),
    [
        ("ACDEFGHIKLMNPQRSTVWY", b"ACDEFGHIKLMNPQRSTVWY", ()),
        ("XBZUO", b"XBZUO", ()),
        ("mkV", b"MKV", ("lowercase",)),
        ("MKV*", b"MKV", ("terminal_stop",)),
        ("M K\tV", b"MKV", ("whitespace",)),
        ("MJKJ", b"MXKX", ("to_X:2",)),
        ("j", b"X", ("lowercase", "to_X:1")),
        (" mJ* ", b"MX", ("whitespace", "lowercase", "terminal_stop", "to_X:1")),
    ],
)
def test_each_change_to_the_residues_is_a_flag(sequence: str, residues: bytes, flags: tuple[str, ...]) -> None:
    record = cleaned(sequence)
    assert (record.residues, set(record.flags), record.reason) == (residues, set(flags), None)
    assert len(record.flags) == len(flags)
    assert record.key == hashlib.sha256(residues).digest()


@pytest.mark.parametrize(
    ("sequence", "reason"),
    [
        ("", "no residues"),
        ("*", "no residues"),
        (" \t", "no residues"),
        ("MK*V", "inner stop"),
        ("*MKV", "inner stop"),
        ("MKV**", "inner stop"),
        ("MK-V", "gap"),
        ("MK.V", "gap"),
        ("MKV-", "gap"),
        ("MK1V", "digit"),
        ("1 MKV 60", "digit"),
        ("MK?V", "invalid character"),
        ("MK>V", "invalid character"),
        ("MK\\V", "invalid character"),
        ("MK\0V", "invalid character"),
        ("MKÉV", "invalid character"),
        ("mkév", "invalid character"),
        ("MKßV", "invalid character"),
        ("M\N{GREEK CAPITAL LETTER ALPHA}K", "invalid character"),
        ("MK\N{ARABIC-INDIC DIGIT THREE}V", "invalid character"),
    ],
)
def test_each_refusal_has_its_reason_and_leaves_no_residues(sequence: str, reason: str) -> None:
    record = cleaned(sequence)
    assert (record.reason, record.residues, record.id) == (reason, b"", "a")


def test_latin_1_in_a_sequence_is_an_invalid_character(tmp_path: Path) -> None:
    before, bad, after = records(tmp_path / "a.fa", b">a\nM\n>b\nMK\xe9V\n>c\nK\n")
    assert (before.residues, bad.reason, after.residues) == (b"M", "invalid character", b"K")


@pytest.mark.parametrize(("header", "sequence"), [("", "MKV"), ("  ", "M"), ("\ufeff\t", "M"), ("", "")])
def test_a_header_without_an_id_is_refused(header: str, sequence: str) -> None:
    record = cleaned(sequence, header)
    assert (record.id, record.reason, record.residues) == ("", "no id", b"")


@pytest.mark.parametrize("letter", [chr(code) for code in range(128)])
def test_every_ascii_character_is_kept_changed_or_refused_as_the_contract_says(letter: str) -> None:
    record = cleaned(f"M{letter}K")
    if letter.isalpha():
        assert record.residues == f"M{letter.upper().replace('J', 'X')}K".encode()
    elif letter.isspace():
        assert record.residues == b"MK"
    else:
        assert record.reason is not None


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"sample\tfasta\na\tb\n", id="table"),
        pytest.param(b"MKVLAG\n>a\nMKV\n", id="residues before the first header"),
        pytest.param(b"@read\nACGT\n+\nIIII\n", id="FASTQ"),
        pytest.param(b"\x00\x01\x02\xff" * 100, id="binary"),
        pytest.param(b"PK\x03\x04rest of a zip", id="zip"),
        pytest.param(b"BZh91AY&SY", id="bzip2"),
        pytest.param(">a\nMKV\n".encode("utf-16"), id="UTF-16"),
        pytest.param(gzip.compress(b"not a FASTA file\n"), id="gzip of text"),
        pytest.param(gzip.compress(gzip.compress(PLAIN)), id="gzip twice"),
    ],
)
def test_a_file_that_is_no_fasta_is_refused_in_one_line_with_its_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "wrong.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"wrong\.txt") as caught:
        list(fasta.read(path))
    assert "FASTA" in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_missing_file_and_a_directory_are_refused_by_name(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.fa", tmp_path):
        with pytest.raises(DataError) as caught:
            list(fasta.read(path))
        assert str(caught.value).startswith(f"{path}: ")


@given(
    entries=st.lists(
        st.tuples(
            st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=12),
            st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12),
            st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", min_size=1, max_size=90),
        ),
        max_size=6,
    ),
    width=st.integers(1, 90),
    newline=st.sampled_from(["\n", "\r\n", "\r"]),
    compression=st.sampled_from(sorted(COMPRESS)),
)
def test_valid_fasta_is_read_as_biopython_reads_it(
    tmp_path_factory: pytest.TempPathFactory,
    entries: list[tuple[str, str, str]],
    width: int,
    newline: str,
    compression: str,
) -> None:
    text = ""
    for identifier, description, sequence in entries:
        wrapped = "\n".join(sequence[i : i + width] for i in range(0, len(sequence), width))
        text += f">{identifier} {description}\n{wrapped}\n"
    path = tmp_path_factory.getbasetemp() / "property.fa"
    found = records(path, COMPRESS[compression](text.replace("\n", newline).encode()))
    expected = list(SimpleFastaParser(io.StringIO(text)))
    assert [(record.id, record.description) for record in found] == [
        (title.split()[0], title.partition(" ")[2].strip()) for title, _ in expected
    ]
    assert [record.residues.decode() for record in found] == [
        sequence.upper().replace("J", "X") for _, sequence in expected
    ]

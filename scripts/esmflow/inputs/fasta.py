"""FASTA records: streaming, cleaning and keying."""

import hashlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from esmflow.errors import DataError
from esmflow.inputs import formats
from esmflow.inputs.compressed import open_content

#: The residue letters of the ESM alphabets (fair-esm `constants.proteinseq_toks`); J is not one of them.
RESIDUES = b"LAGVSERTIDPKQNFYMHWCXBUZO"
#: Characters of one record, its header and line ends among them, beyond which it is skipped: what bounds the memory.
MAX_CHARACTERS = 100_000_000
#: The flag of a record that is nothing but nucleotides, and the letters that it needs to be called so.
NUCLEOTIDES_FLAG = "nucleotides?"
NUCLEOTIDES_LETTERS = 30

_LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_TO_X = bytes.maketrans(bytes(set(_LETTERS) - set(RESIDUES)), b"X" * (len(_LETTERS) - len(RESIDUES)))
_NUCLEOTIDES = b"ACGTUN"
#: IUPAC's letters for one of several nucleotides; they are amino acids as well, so that a tenth may be of them at most.
_AMBIGUOUS = b"RYSWKMBDHV"
_BYTE_ORDER_MARK = "\ufeff"
_BLANKS = "".join(filter(str.isspace, map(chr, range(0x10000)))) + _BYTE_ORDER_MARK
_CONTROL = re.compile(r"[\0-\x1f\x7f-\x9f]")
_CHUNK = 1 << 20
#: What is kept of each end of a record that is too long: enough for its ID, and for the line that its end stands on.
_KEPT = 1 << 16


# Millions of these are made: a tuple takes a third of the time of a frozen dataclass.
class RawRecord(NamedTuple):
    """A FASTA entry as it stands in the file; of one that is too long, `text` lacks a part."""

    line: int
    header: str
    text: str
    flags: tuple[str, ...] = ()
    too_long: bool = False


class Record(NamedTuple):
    """A cleaned FASTA entry. An invalid one has a `reason` and no residues."""

    id: str
    description: str
    residues: bytes
    flags: tuple[str, ...]
    reason: str | None

    @property
    def key(self) -> bytes:
        """SHA-256 of the cleaned residues, 32 bytes."""
        return hashlib.sha256(self.residues).digest()


def read(path: Path) -> Iterator[RawRecord]:
    r"""Stream the entries of a FASTA file in constant memory (one entry at a time, up to `MAX_CHARACTERS` of it).

    Line ends may be LF, CRLF or CR; blank lines are passed over; a byte that is not UTF-8 is shown as `\xNN`. A '>'
    that is not within a header or a comment begins an entry, wherever in its line. docs/inputs.md has all rules.
    Raises DataError if the file cannot be read, is damaged, or is no FASTA.
    """
    with open_content(path) as stream:
        formats.refuse_others(path, stream.read(formats.HEAD))
    with (
        open_content(path) as stream,
        io.TextIOWrapper(stream, encoding="utf-8-sig", errors="backslashreplace") as text,
    ):
        yield from _entries(path, text)


def _entries(path: Path, text: io.TextIOWrapper) -> Iterator[RawRecord]:
    before: tuple[str, ...] = ()
    for line, header, body, too_long in _pieces(text):
        within, after = _flags_of_the_cut(body)
        flags = tuple(dict.fromkeys(before + within)) if before else within
        if ";" in body or "-" in body or not body.isascii():
            body, odd = _without_odd_lines(body)
            flags += odd
        if line:
            if header[2:3] == ";":
                formats.refuse_others(path, f">{header}".encode())
            yield RawRecord(line, header, body.replace("\n", ""), flags, too_long)
        elif body.strip(_BLANKS):
            first = body.strip(_BLANKS).split("\n", 1)[0][:40]
            raise DataError(f"{path}: begins with {first!r}, not with a FASTA header ('>'); give a protein FASTA file")
        before = after


def _pieces(text: io.TextIOWrapper) -> Iterator[tuple[int, str, str, bool]]:
    """Cut the text before each '>' that begins an entry: line, header, what follows it, whether a part was left out.

    The first piece, on line 0, is what comes before the first entry.
    """
    line = lines_left_out = 0
    too_long = False
    rest = "\n"
    while True:
        chunk = text.read(_CHUNK)
        rest += chunk or "\n>"
        begin = 0
        while (header_end := rest.find("\n", begin)) >= 0 and (end := _next_entry(rest, header_end)) >= 0:
            body = rest[header_end + 1 : end]
            yield line, rest[begin:header_end], body, too_long or end - begin > MAX_CHARACTERS
            line += 1 + body.count("\n") + lines_left_out
            begin, lines_left_out, too_long = end + 1, 0, False
        if not chunk:
            return
        rest = rest[begin:]
        if len(rest) > MAX_CHARACTERS or (too_long and len(rest) > 3 * _KEPT):
            too_long = True
            lines_left_out += rest.count("\n", _KEPT, -_KEPT)
            rest = rest[:_KEPT] + rest[-_KEPT:]


def _next_entry(text: str, start: int) -> int:
    """Where the next '>' is that does not stand within a comment; -1 if there is none yet. A line ends at `start`."""
    mark = text.find(">", start)
    while mark >= 0 and text[mark - 1] != "\n":
        line = text.rfind("\n", start, mark) + 1
        if not text[line:mark].lstrip(_BLANKS).startswith(";"):
            break
        line_end = text.find("\n", mark)
        mark = text.find(">", line_end) if line_end >= 0 else -1
    return mark


def _flags_of_the_cut(body: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The flags of the entry that ends with this text, and of the next, for a '>' that is not the first of its line."""
    if not body or body[-1] == "\n":
        return (), ()
    last_line = body[body.rfind("\n") + 1 :]
    if last_line.strip(_BLANKS):
        return ("header_in_line",), ("header_in_line",)
    return (), ("space_before_header",) if last_line.strip(_BYTE_ORDER_MARK) else ()


def _without_odd_lines(body: str) -> tuple[str, tuple[str, ...]]:
    """The text without comments, `--` lines and byte order marks at its end, and flags for the first two."""
    kept, flags = [], {}
    *lines, cut_line = body.split("\n")
    for line in lines:
        text = line.strip(_BLANKS)
        if text.startswith(";"):
            flags["comment"] = True
        elif text == "--":
            flags["separator"] = True
        else:
            kept.append(line)
    residues = "\n".join([*kept, cut_line])
    end = len(residues.rstrip(_BLANKS))
    return residues[:end] + residues[end:].replace(_BYTE_ORDER_MARK, ""), tuple(flags)


def clean(raw: RawRecord) -> Record:
    r"""Split the header and bring the residues into the models' alphabet.

    White space goes, letters become upper case, a terminal `*` is stripped, letters outside the alphabet become
    X; each such change is a flag. An entry without an ID or residues, with an inner `*`, a gap, a digit or any
    other character, or that is too long, is invalid. A control character in the ID is shown as `\xNN`.
    A change of these rules must raise `planned_model.CLEANING_VERSION`.
    """
    identifier, description = _split_header(raw.header)
    flags = list(raw.flags)
    if identifier and raw.header[0] in _BLANKS:
        flags.append("space_before_id")
    residues = raw.text.encode("utf-8")
    if residues.translate(None, RESIDUES):
        residues, changes = _normalize(raw.text)
        flags += changes
    if _are_nucleotides(residues):
        flags.append(NUCLEOTIDES_FLAG)
    foreign = residues.translate(None, RESIDUES)
    reason = _refusal(identifier, residues, foreign.translate(None, _LETTERS), raw.too_long)
    if reason is not None:
        return Record(identifier, description, b"", tuple(flags), reason)
    if foreign:
        flags.append(f"to_X:{len(foreign)}")
        residues = residues.translate(_TO_X)
    return Record(identifier, description, residues, tuple(flags), None)


def _normalize(text: str) -> tuple[bytes, list[str]]:
    """Residues in upper case without white space and a terminal `*`, and the flags of what was changed."""
    flags = []
    squeezed = "".join(text.split())
    if len(squeezed) != len(text):
        flags.append("whitespace")
    residues = squeezed.encode("utf-8")
    if residues != (upper := residues.upper()):
        flags.append("lowercase")
    if upper.endswith(b"*"):
        flags.append("terminal_stop")
    return upper.removesuffix(b"*"), flags


def _split_header(header: str) -> tuple[str, str]:
    words = header.lstrip(_BLANKS).split(None, 1)
    if not words:
        return "", ""
    identifier, *description = words
    if not identifier.isprintable():
        identifier = _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", identifier)
    return identifier, description[0].rstrip() if description else ""


def _are_nucleotides(residues: bytes) -> bool:
    if len(residues) < NUCLEOTIDES_LETTERS or residues.strip(_NUCLEOTIDES + _AMBIGUOUS):
        return False
    return 10 * len(residues.translate(None, _NUCLEOTIDES)) <= len(residues)


def _refusal(identifier: str, residues: bytes, others: bytes, too_long: bool) -> str | None:
    """Why a sequence with these characters other than letters is refused; None if it is not."""
    if not identifier:
        return "no id"
    if too_long:
        return f"more than {MAX_CHARACTERS:,} characters"
    if not residues:
        return "no residues"
    if not others:
        return None
    if b"*" in others:
        return "inner stop"
    if b"\\" in others or not others.isascii():
        return "invalid character"
    if b"-" in others or b"." in others:
        return "gap"
    if any(digit in others for digit in b"0123456789"):
        return "digit"
    return "invalid character"


def key_of(residues: str) -> tuple[bytes, int]:
    """Key and length of a sequence, cleaned as `ingest` does. Raises DataError if it is none."""
    record = clean(RawRecord(1, "given", residues))
    if record.reason:
        raise DataError(f"residues: {record.reason}; give a protein sequence")
    return record.key, len(record.residues)

"""FASTA records: streaming, cleaning and keying."""

import hashlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from esmflow.errors import DataError
from esmflow.inputs import formats
from esmflow.inputs.compressed import open_content
from esmflow.origin import Origin

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
#: What is kept of each end of a header that is too long, and where in a long line a place to cut it is looked for.
_KEPT = 1 << 16
#: Characters of an entry beyond which it comes in parts.
_LONG = 1 << 18

#: The kind of a file of which nothing is said: proteins, but one that looks like nucleotides is refused.
PRESUMED = "protein?"


@dataclass(frozen=True)
class Fasta:
    """A FASTA file of a sample, and how proteins come out of it."""

    path: Path
    kind: str = PRESUMED
    """What its records are: a key of `kinds.KINDS`."""
    code: int | None = None
    """The genetic code, NCBI's number of it; None for that of its kind."""
    chunk: int = 500
    """Nucleotides of a chunk, where the kind cuts its records."""


# Millions of these are made: a tuple takes a third of the time of a frozen dataclass.
class RawRecord(NamedTuple):
    """A FASTA entry as it stands in the file; of one that is too long, `text` lacks a part."""

    line: int
    header: str
    text: str
    flags: tuple[str, ...] = ()
    too_long: bool = False
    last: bool = True
    """False for a part of a long entry that is not its last; its flags are those that came up in this part."""


_NO_ORIGIN = Origin()


class Record(NamedTuple):
    """A cleaned FASTA entry, or a fragment of one. An invalid one has a `reason` and no residues."""

    id: str
    description: str
    residues: bytes
    flags: tuple[str, ...]
    reason: str | None
    origin: Origin = _NO_ORIGIN

    @property
    def key(self) -> bytes:
        """SHA-256 of the cleaned residues, 32 bytes."""
        return hashlib.sha256(self.residues).digest()


def read(path: Path) -> Iterator[RawRecord]:
    """Stream the entries of a FASTA file in constant memory (one entry at a time, up to `MAX_CHARACTERS` of it).

    Otherwise as `read_parts`, whose parts are put together.
    """
    parts: list[RawRecord] = []
    for part in read_parts(path):
        if part.last and not parts:
            yield part
            continue
        parts.append(part)
        if part.too_long:
            del parts[1:-1]
        if part.last:
            text = "".join([part.text for part in parts])
            flags = tuple(dict.fromkeys(flag for part in parts for flag in part.flags))
            yield RawRecord(part.line, part.header, text, flags, part.too_long)
            parts.clear()


def read_parts(path: Path) -> Iterator[RawRecord]:
    r"""Stream the entries of a FASTA file in constant memory, long ones of any length in parts.

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
    for line, header, body, too_long, last in _pieces(text):
        within, after = _flags_of_the_cut(body) if last else ((), ())
        flags = tuple(dict.fromkeys(before + within)) if before else within
        if ";" in body or "-" in body or not body.isascii():
            body, odd = _without_odd_lines(body)
            flags += odd
        if line:
            if header[2:3] == ";":
                formats.refuse_others(path, f">{header}".encode())
            yield RawRecord(line, header, body.replace("\n", ""), flags, too_long, last)
        elif body.strip(_BLANKS):
            first = body.strip(_BLANKS).split("\n", 1)[0][:40]
            raise DataError(f"{path}: begins with {first!r}, not with a FASTA header ('>'); give a FASTA file")
        before = after


def _pieces(text: io.TextIOWrapper) -> Iterator[tuple[int, str, str, bool, bool]]:
    """Cut the text before each '>' that begins an entry, and what is long in parts.

    Yields line, header, what follows it, whether that is too long for a protein so far, and whether it is the last
    part. The first entry, on line 0, is what comes before the first '>'.
    """
    line = characters = lines = 0
    rest = "\n"
    while True:
        chunk = text.read(_CHUNK)
        rest += chunk or "\n>"
        begin = 0
        while (header_end := rest.find("\n", begin)) >= 0 and (end := _next_entry(rest, header_end)) >= 0:
            body = rest[header_end + 1 : end]
            yield line, rest[begin:header_end], body, characters + end - begin > MAX_CHARACTERS, True
            line += 1 + body.count("\n") + lines
            begin, characters, lines = end + 1, 0, 0
        if not chunk:
            return
        rest = rest[begin:]
        if header_end < 0 and len(rest) > MAX_CHARACTERS:
            characters += len(rest) - 2 * _KEPT
            rest = rest[:_KEPT] + rest[-_KEPT:]
        elif 0 <= header_end < begin + len(rest) - _LONG:
            header, body = rest.split("\n", 1)
            part, begun = _cut(body)
            yield line, header, part, characters + len(rest) > MAX_CHARACTERS, False
            characters += len(body) - len(begun)
            lines += part.count("\n")
            rest = f"{header}\n{begun}"


def _cut(body: str) -> tuple[str, str]:
    """What can be given of an entry that goes on: up to its last line end, or of what is one line, up to a letter."""
    if end := body.rfind("\n") + 1:
        return body[:end], body[end:]
    if body.lstrip(_BLANKS).startswith(";"):
        return "", ";"
    # So that what follows is seen to stand within a line.
    places = range(len(body) - 1, max(len(body) - _KEPT, 0) - 1, -1)
    letter = next((place for place in places if body[place].isalnum()), len(body))
    return body[:letter], body[letter:]


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
    identifier, description, flags = read_header(raw)
    residues = raw.text.encode("utf-8")
    if foreign := residues.translate(None, RESIDUES):
        residues, changes = _normalize(raw.text)
        flags += changes
        foreign = residues.translate(None, RESIDUES)
    if _are_nucleotides(residues):
        flags.append(NUCLEOTIDES_FLAG)
    # To look for other characters where there are none takes as long as a look at a whole sequence.
    others = foreign and foreign.translate(None, _LETTERS)
    reason = _refusal(identifier, residues, others, raw.too_long)
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


def read_header(raw: RawRecord) -> tuple[str, str, list[str]]:
    r"""ID and description in an entry's header, and the entry's flags; a control character is shown as `\xNN`."""
    flags = list(raw.flags)
    words = raw.header.lstrip(_BLANKS).split(None, 1)
    if not words:
        return "", "", flags
    identifier, *description = words
    if raw.header[0] in _BLANKS:
        flags.append("space_before_id")
    if not identifier.isprintable():
        identifier = _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", identifier)
    return identifier, description[0].rstrip() if description else "", flags


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
    return "inner stop" if b"*" in others else refusal_of_characters(others)


def refusal_of_characters(others: bytes) -> str:
    """The reason of a record with such characters, which are no letters."""
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

"""FASTA records: streaming, cleaning and keying."""

import gzip
import hashlib
import io
import lzma
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from esmflow.errors import DataError
from esmflow.files import open_content

#: The residue letters of the ESM alphabets (fair-esm `constants.proteinseq_toks`); J is not one of them.
RESIDUES = b"LAGVSERTIDPKQNFYMHWCXBUZO"
_LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_TO_X = bytes.maketrans(bytes(set(_LETTERS) - set(RESIDUES)), b"X" * (len(_LETTERS) - len(RESIDUES)))


@dataclass(frozen=True, slots=True)
class RawRecord:
    """A FASTA entry as it stands in the file."""

    line: int
    header: str
    text: str


@dataclass(frozen=True, slots=True)
class Record:
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
    r"""Stream the entries of a FASTA file in constant memory (one entry at a time).

    Line ends may be LF, CRLF or CR; blank lines are passed over; a byte that is not UTF-8 is shown as `\xNN`.
    Raises DataError if the file cannot be read, is damaged, or does not begin with a '>' line.
    """
    try:
        with (
            open_content(path) as stream,
            io.TextIOWrapper(stream, encoding="utf-8-sig", errors="backslashreplace") as lines,
        ):
            yield from _entries(path, lines)
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        raise DataError(f"{path}: compressed file is cut short or damaged ({error}); fetch it again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def _entries(path: Path, lines: io.TextIOWrapper) -> Iterator[RawRecord]:
    header: str | None = None
    start = 0
    parts: list[str] = []
    for number, line in enumerate(lines, 1):
        if line.startswith(">"):
            if header is not None:
                yield RawRecord(start, header, "".join(parts))
            header, start, parts = line[1:].rstrip("\n"), number, []
        elif header is not None:
            parts.append(line.rstrip("\n"))
        elif line.strip():
            raise DataError(f"{path}: line {number} is not a FASTA header (no '>'); give a protein FASTA file")
    if header is not None:
        yield RawRecord(start, header, "".join(parts))


def clean(raw: RawRecord) -> Record:
    """Split the header and bring the residues into the models' alphabet.

    White space goes, letters become upper case, a terminal `*` is stripped, letters outside the alphabet become
    X; each such change is a flag. An entry without an ID or residues, with an inner `*`, a gap, a digit or any
    other character is invalid. A change of these rules must raise `spec.LETTERS_VERSION`.
    """
    identifier, description = _split_header(raw.header)
    flags = []
    text = "".join(raw.text.split())
    if len(text) != len(raw.text):
        flags.append("whitespace")
    residues = text.encode("utf-8")
    if residues != (upper := residues.upper()):
        flags.append("lowercase")
        residues = upper
    if residues.endswith(b"*"):
        flags.append("terminal_stop")
        residues = residues[:-1]
    foreign = residues.translate(None, RESIDUES)
    others = foreign.translate(None, _LETTERS)
    reason = "no id" if not identifier else "no residues" if not residues else _refusal(others)
    if reason is not None:
        return Record(identifier, description, b"", tuple(flags), reason)
    if foreign:
        flags.append(f"to_X:{len(foreign)}")
        residues = residues.translate(_TO_X)
    return Record(identifier, description, residues, tuple(flags), None)


def _split_header(header: str) -> tuple[str, str]:
    if not header or header[0].isspace():
        return "", header.strip()
    identifier, *description = header.split(None, 1)
    return identifier, description[0].rstrip() if description else ""


def _refusal(others: bytes) -> str | None:
    """Why a sequence with these characters other than letters is refused; None for no such characters."""
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

"""Contigs: nucleotide records of any length, of which other modules make fragments, their proteins."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from esmflow.errors import DataError
from esmflow.inputs import fasta
from esmflow.origin import Origin

_NUCLEOTIDES = b"ACGTN"
#: IUPAC's letters for one of several nucleotides, besides N.
_AMBIGUOUS = b"RYSWKMBDHV"
_LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"
#: The flag of a contig that looks like a protein.
_PROTEIN_FLAG = "protein?"
#: Letters of a contig that are kept in memory; those of a longer one lie in a file.
_IN_MEMORY = 16 << 20


class Contig(NamedTuple):
    """A nucleotide record. An invalid one has a `reason`."""

    line: int
    id: str
    description: str
    flags: tuple[str, ...]
    reason: str | None
    length: int
    letters: IO[bytes]
    """They are there until the next contig is asked for."""

    def read(self, start: int, end: int) -> bytes:
        """The letters from `start` up to `end`, or to the last, counted from 0: in upper case and with T for U."""
        self.letters.seek(start)
        return self.letters.read(min(end, self.length) - start)


def fragments(
    file: fasta.Fasta,
    scratch: Path,
    find: Callable[[Contig], Iterator[fasta.Record]],
    none: str,
    longest: int | None = None,
) -> Iterator[tuple[int, fasta.Record]]:
    """The records that `find` makes of each contig of a file, each with its contig's line.

    A contig that is invalid or longer than `longest`, or of which it makes none, is a record itself; `none` is the
    reason of the latter. Raises DataError as `contigs` does.
    """
    for contig in contigs(file.path, scratch):
        reason = contig.reason
        if longest and contig.length > longest:
            reason = reason or f"more than {longest:,} nucleotides"
        proteins = iter(()) if reason else find(contig)
        first = next(proteins, None)
        if first is None:
            origin = Origin(contig.id) if reason else Origin(contig.id, 1, contig.length)
            first = fasta.Record(contig.id, contig.description, b"", contig.flags, reason or none, origin)
        yield contig.line, first
        for record in proteins:
            yield contig.line, record


def contigs(path: Path, scratch: Path) -> Iterator[Contig]:
    """Stream the contigs of a FASTA file in constant memory; long ones pass through a file in the directory `scratch`.

    White space goes, letters become upper case, U becomes T; each such change is a flag. A contig without an ID or
    letters, or with a character that is none of IUPAC's letters, is invalid.
    Raises DataError if the file cannot be read or is no FASTA, and at its end if nine in ten records were proteins.
    """
    judged = proteins = 0
    with tempfile.SpooledTemporaryFile(_IN_MEMORY, dir=str(scratch)) as letters:
        contig = _Letters(letters)
        for part in fasta.read_parts(path):
            contig.add(part)
            if part.last:
                whole = contig.whole(part)
                judged += whole.length >= fasta.NUCLEOTIDES_LETTERS
                proteins += _PROTEIN_FLAG in whole.flags
                yield whole
                contig = _Letters(letters)
    if judged and 10 * proteins >= 9 * judged:
        raise DataError(
            f"{path}: {proteins:,} of {judged:,} records of at least {fasta.NUCLEOTIDES_LETTERS} letters are no "
            "nucleotides; give contigs, or leave the sheet's column 'kind' empty if they are proteins"
        )


class _Letters:
    """The letters of a contig, as they come in parts."""

    def __init__(self, letters: IO[bytes]) -> None:
        letters.seek(0)
        self._letters = letters
        self._flags: dict[str, None] = {}
        self._length = self._others = 0
        self._foreign: set[int] = set()
        self._header_too_long: bool | None = None

    def add(self, part: fasta.RawRecord) -> None:
        self._flags.update(dict.fromkeys(part.flags))
        if self._header_too_long is None:
            self._header_too_long = part.too_long
        letters = part.text.encode("utf-8")
        if letters.translate(None, _NUCLEOTIDES):
            letters = self._normalize(part.text)
            others = letters.translate(None, _NUCLEOTIDES)
            self._others += len(others)
            self._foreign.update(others.translate(None, _AMBIGUOUS))
        self._length += len(letters)
        self._letters.write(letters)

    def whole(self, last: fasta.RawRecord) -> Contig:
        identifier, description, flags = fasta.read_header(last._replace(flags=tuple(self._flags)))
        if self._length >= fasta.NUCLEOTIDES_LETTERS and 10 * self._others > self._length:
            flags.append(_PROTEIN_FLAG)
        reason = self._refusal(identifier)
        return Contig(last.line, identifier, description, tuple(flags), reason, self._length, self._letters)

    def _normalize(self, text: str) -> bytes:
        squeezed = "".join(text.split())
        if len(squeezed) != len(text):
            self._flags["whitespace"] = None
        letters = squeezed.encode("utf-8")
        if letters != (upper := letters.upper()):
            self._flags["lowercase"] = None
        if b"U" in upper:
            self._flags["U_to_T"] = None
        return upper.replace(b"U", b"T")

    def _refusal(self, identifier: str) -> str | None:
        if not identifier:
            return "no id"
        if self._header_too_long:
            return f"header of more than {fasta.MAX_CHARACTERS:,} characters"
        if not self._length:
            return "no nucleotides"
        if not self._foreign:
            return None
        foreign = bytes(self._foreign)
        if b"\\" not in foreign and not self._foreign.isdisjoint(_LETTERS):
            return "not a nucleotide"
        return fasta.refusal_of_characters(foreign)

"""Kind `six_frame`: the open frames of pieces of contigs, as VirNucPro makes them."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path

from esmflow.inputs import fasta
from esmflow.inputs.nucleotides import Contig, fragments
from esmflow.origin import Origin

CODE = 1
_STOP, _AMBIGUOUS = b"*", b"-"
#: Letters that are translated together.
_TOGETHER = 4 << 20

#: From letters to the residue of the codon that begins at each, [letters - 2], on the strand and on the other.
Translate = Callable[[bytes], tuple[bytes, bytes]]


def codes() -> set[int]:
    """The genetic codes that there are, as NCBI numbers them."""
    # Only here, as it takes long, and a sheet is read by each of Snakemake's processes.
    from Bio.Data.CodonTable import unambiguous_dna_by_id

    return set(unambiguous_dna_by_id)


def read(file: fasta.Fasta, scratch: Path) -> Iterator[tuple[int, fasta.Record]]:
    """The fragments of a file's contigs, each with its contig's line. Raises DataError as `nucleotides.contigs` does.

    A fragment is a frame of a chunk without a stop codon. Its ID is `{contig}_chunk_{i}F1` to `F3`, or `R1` to `R3` on
    the other strand. Codons with letters other than A, C, G and T have no residue; a flag tells their number.
    """
    find = partial(_open_frames, chunk=file.chunk, translate=_translator(file.code or CODE))
    return fragments(file, scratch, find, none="no open frame")


def chunk_starts(length: int, chunk: int) -> list[int]:
    """Where the chunks of a contig begin, counted from 0, so that they reach from its begin to its end.

    They are as few as can be, and overlap where its length is no multiple of theirs: all by the same number of
    letters, the first ones by one more, so that the last chunk is the only one that may be shorter.
    """
    count = -(-length // chunk)
    surplus = count * chunk - length
    overlap = surplus // count
    longer = min(surplus - overlap * (count - 1), count - 1) if surplus else 0
    return [number * (chunk - overlap) - min(number, longer) for number in range(count)]


def _open_frames(contig: Contig, chunk: int, translate: Translate) -> Iterator[fasta.Record]:
    starts = chunk_starts(contig.length, chunk)
    together = max(_TOGETHER // chunk, 1)
    for first in range(0, len(starts), together):
        part = starts[first : first + together]
        letters = contig.read(part[0], part[-1] + chunk)
        strand, other_strand = translate(letters)
        for number, start in enumerate(part, first + 1):
            begin, end = start - part[0], min(start - part[0] + chunk, len(letters))
            name = f"{contig.id}_chunk_{number}"
            for sign, label, residues in (
                ("+", "F", strand[begin : end - 2]),
                ("-", "R", other_strand[begin : end - 2][::-1]),
            ):
                for frame in range(3):
                    codons = residues[frame::3]
                    protein = codons.translate(None, _AMBIGUOUS)
                    if not protein or _STOP in protein:
                        continue
                    flags = contig.flags
                    if ambiguous := len(codons) - len(protein):
                        flags += (f"ambiguous_codons:{ambiguous}",)
                    size = 3 * len(codons)
                    low = part[0] + (begin + frame if sign == "+" else end - frame - size)
                    origin = Origin(contig.id, low + 1, low + size, sign, frame + 1)
                    identifier = f"{name}{label}{frame + 1}"
                    yield fasta.Record(identifier, contig.description, protein, flags, None, origin)


def _translator(code: int) -> Translate:
    import numpy as np
    from Bio.Data.CodonTable import unambiguous_dna_by_id

    table = unambiguous_dna_by_id[code]
    complement = dict(zip("ACGT", "TGCA", strict=True))

    def residue(codon: str) -> str:
        # A codon that is read as a residue or as a stop, as in code 27, is a residue to Biopython.
        return table.forward_table.get(codon) or _STOP.decode()

    # A codon is a number of three digits to the base 5, of which 4 stands for any letter but A, C, G and T.
    digits = np.full(256, 4, np.uint8)
    digits[list(b"ACGT")] = range(4)
    strand, other = np.full((2, 125), ord(_AMBIGUOUS), np.uint8)
    for codon in map("".join, product("ACGT", repeat=3)):
        number = int("".join(str("ACGT".index(letter)) for letter in codon), 5)
        strand[number] = ord(residue(codon))
        other[number] = ord(residue("".join(complement[letter] for letter in reversed(codon))))

    def translate(letters: bytes) -> tuple[bytes, bytes]:
        read = digits[np.frombuffer(letters, np.uint8)]
        codons = 25 * read[:-2] + 5 * read[1:-1] + read[2:]
        return strand[codons].tobytes(), other[codons].tobytes()

    return translate

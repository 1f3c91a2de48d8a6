"""Variants: substitutions in a protein, as ProteinGym writes them (`A42G:K50R`) or HGVS (`p.Ala42Gly`)."""

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq

from esmflow.alphabet import AMINO_ACIDS
from esmflow.sealed import whole

_ROWS = 10_000
#: The names of three letters of the 20 amino acids, in their order, and of what else stands in sequences.
_LETTERS = {
    name: letter
    for names, letters in (
        ("ALA CYS ASP GLU PHE GLY HIS ILE LYS LEU MET ASN PRO GLN ARG SER THR VAL TRP TYR", AMINO_ACIDS),
        ("SEC PYL ASX GLX XAA TER", "UOBZX*"),
    )
    for name, letter in zip(names.split(), letters, strict=True)
}
#: HGVS marks a protein by `p.`, what was not seen but foretold by parentheses, and several by `p.[...;...]`.
_SEVERAL = re.compile(r"(?:p\.)?\[(.*)\]", re.IGNORECASE)
_ONE = re.compile(r"(?:p\.)?(\()?([a-z]{3}|[a-z*])([0-9]{1,18})([a-z]{3}|[a-z*])(?(1)\))", re.IGNORECASE | re.ASCII)


class Substitution(NamedTuple):
    """One amino acid in the place of another."""

    own: str
    """The letter of the residue that is there."""
    position: int
    """From 1."""
    letter: str
    """One of the 20 amino acids."""

    def __str__(self) -> str:
        return f"{self.own}{self.position}{self.letter}"


def parse(mutant: str) -> list[Substitution]:
    """The substitutions of a variant, in any case of letters. Raises ValueError with the reason for any other text."""
    text = mutant.strip()
    if several := _SEVERAL.fullmatch(text):
        text = several[1]
    substitutions = [_substitution(part.strip()) for part in re.split("[:;]", text)]
    positions = [substitution.position for substitution in substitutions]
    for position in positions:
        if positions.count(position) > 1:
            raise ValueError(f"position {position} is named twice")
    return substitutions


def misfit(substitutions: Sequence[Substitution], residues: bytes) -> str | None:
    """Why a protein of these residues has no such variant; None if it has."""
    for own, position, _ in substitutions:
        if position > len(residues):
            return f"position {position} is beyond the end ({len(residues)} residues)"
        if (there := chr(residues[position - 1])) != own:
            return f"position {position} has {there}, not {own}"
    return None


def residues_of(sequences: Path, keys: Collection[bytes]) -> dict[bytes, bytes]:
    """The residues of the proteins with these keys, from a sample's file of sequences."""
    residues: dict[bytes, bytes] = {}
    with pq.ParquetFile(whole(sequences), pre_buffer=False) as file:
        for rows in file.iter_batches(_ROWS, columns=["key", "residues"]):
            pairs = zip(rows["key"].to_pylist(), rows["residues"].to_pylist(), strict=True)
            residues.update((key, value) for key, value in pairs if key in keys)
    return residues


def _substitution(part: str) -> Substitution:
    match = _ONE.fullmatch(part)
    own, letter = (_LETTERS.get(name.upper(), name.upper()) for name in match.group(2, 4)) if match else ("", "")
    if match is None or len(own) != 1 or len(letter) != 1:
        raise ValueError(f"{part[:40]!r} is no substitution such as A42G or p.Ala42Gly")
    if "*" in (own, letter):
        raise ValueError(f"{part}: a stop is no amino acid")
    position = int(match[3])
    if position == 0:
        raise ValueError(f"{part}: positions count from 1")
    if letter not in AMINO_ACIDS:
        raise ValueError(f"{part}: {letter} is none of the 20 amino acids")
    return Substitution(own, position, letter)

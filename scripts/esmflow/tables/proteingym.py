"""Scores of variants in files as ProteinGym (Notin et al. 2023, doi:10.1101/2023.12.07.570727) has one per assay."""

import csv
import logging
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from esmflow import files
from esmflow.alphabet import AMINO_ACIDS
from esmflow.sealed import whole
from esmflow.tables.exports import safe_name
from esmflow.variant import residues_of

log = logging.getLogger(__name__)


def write_proteingym(mutants: Path, table: Path, sequences: Path, directory: Path) -> None:
    """Write a file `{id}.csv` for each protein of a sample that has scored variants.

    Columns: `mutant` (`A42G:K50R`, whatever the sheet's notation was), `mutated_sequence`, and the scores, named as in
    the table of variants. A mutant stands there once; lines that were refused are left out. `safe_name` makes the ID
    the name of the file; a second sequence of the same ID gets `{id}%-2.csv`. mutants, sequences: what the table was
    made from, and the residues of the sample.
    """
    lines = pq.read_table(whole(mutants), columns=["id", "key", "positions", "letters"])
    scores = pq.read_table(whole(table))
    names = scores.column_names[2:-1]
    proteins: dict[tuple[str, bytes], list[int]] = {}
    scored = [number for number, reason in enumerate(scores["reason"].to_pylist()) if reason is None]
    ids, keys = (lines[column].take(pa.array(scored, pa.int64())).to_pylist() for column in ("id", "key"))
    for number, name, key in zip(scored, ids, keys, strict=True):
        proteins.setdefault((name, key), []).append(number)
    residues = residues_of(sequences, {key for _, key in proteins})
    repeats: Counter[str] = Counter()
    with files.atomic_directory(directory) as work:
        for (name, key), numbers in proteins.items():
            repeats[name] += 1
            rows = _rows(residues[key].decode(), lines.take(numbers), scores.select(names).take(numbers))
            path = work / f"{safe_name(name, repeats[name])}.csv"
            with path.open("x", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(["mutant", "mutated_sequence", *names])
                writer.writerows(rows.values())
    log.info("%s variants of %s proteins", f"{len(scored):,}", f"{len(proteins):,}")


def _rows(residues: str, lines: pa.Table, scores: pa.Table) -> dict[str, list[object]]:
    """The rows of a protein's file, by mutant."""
    rows: dict[str, list[object]] = {}
    columns = lines["positions"].to_pylist(), lines["letters"].to_pylist(), scores.to_pylist()
    for positions, letters, values in zip(*columns, strict=True):
        mutated, words = list(residues), []
        for position, letter in sorted(zip(positions, letters, strict=True)):
            mutated[position] = AMINO_ACIDS[letter]
            words.append(f"{residues[position]}{position + 1}{AMINO_ACIDS[letter]}")
        mutant = ":".join(words)
        rows.setdefault(mutant, [mutant, "".join(mutated), *values.values()])
    return rows

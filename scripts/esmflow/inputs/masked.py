"""The masked copies of a sample's sequences that a model is to see: a row for each, as a catalog has one per record."""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from esmflow import files
from esmflow.alphabet import AMINO_ACIDS
from esmflow.inputs.catalog import TableWriter
from esmflow.masking import masked_copies
from esmflow.planned_model import ModelSpec
from esmflow.refusal import refusal, with_refusal
from esmflow.sealed import whole

#: What a catalog has, and the residues, of each copy; then of which sequence it is a copy, which position is masked,
#: and which of the 20 amino acids is there, or -1.
COPIES = pa.schema(
    [
        pa.field("index", pa.int64(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("length", pa.int32(), nullable=False),
        pa.field("key", pa.binary(32), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("residues", pa.binary(), nullable=False),
        pa.field("sequence", pa.binary(32), nullable=False),
        pa.field("position", pa.int32(), nullable=False),
        pa.field("own", pa.int8(), nullable=False),
    ]
)
_ROWS = 1024
_BATCH_RESIDUES = 16 << 20
_NUMBERS = {ord(letter): number for number, letter in enumerate(AMINO_ACIDS)}

log = logging.getLogger(__name__)


def write_masked(sequences: Path, spec: ModelSpec, target: Path, mutants: Path | None = None) -> None:
    """Write the masked copies of the sequences in a sample's file, each sequence once, in its order.

    Positions count from 0. They are those that the model keeps of a sequence; with `mutants`, only those of them that
    a variant names. Of a sample that was refused the list is empty and tells why.
    """
    named = _named(mutants) if mutants else None
    copies = buffered = 0
    refused = refusal(sequences)
    schema = with_refusal(COPIES, refused) if refused else COPIES
    with files.atomic(target) as temporary, closing(TableWriter(temporary, schema)) as table:
        for sequence, residues in _unique(sequences):
            treatment = spec.treatment(len(residues))
            kept = int(spec.kept(np.array(len(residues))))
            positions = range(kept) if named is None else [at for at in named.get(sequence, ()) if at < kept]
            if not treatment or not positions:
                continue
            for position, copy in zip(positions, masked_copies(residues, treatment, positions), strict=True):
                key, label = hashlib.sha256(copy).digest(), f"residue {position + 1} of {sequence.hex()[:16]}"
                own = _NUMBERS.get(residues[position], -1)
                table.add((copies, label, len(copy), key, "valid", None, copy, sequence, position, own))
                copies += 1
                buffered += len(copy)
                if buffered > _BATCH_RESIDUES:
                    table.flush()
                    buffered = 0
        table.flush()
    log.info("%s masked copies", f"{copies:,}")


def _unique(sequences: Path) -> Iterator[tuple[bytes, bytes]]:
    """Key and residues of each sequence of a sample's file, once."""
    seen: set[bytes] = set()
    with pq.ParquetFile(whole(sequences), pre_buffer=False) as file:
        for rows in file.iter_batches(_ROWS, columns=["key", "residues"]):
            for key, residues in zip(rows["key"].to_pylist(), rows["residues"].to_pylist(), strict=True):
                if key not in seen:
                    seen.add(key)
                    yield key, residues


def _named(mutants: Path) -> dict[bytes, list[int]]:
    """The positions that variants name in each sequence, ascending."""
    named: dict[bytes, set[int]] = {}
    with pq.ParquetFile(whole(mutants)) as file:
        for rows in file.iter_batches(columns=["key", "reason", "positions"]):
            scorable = rows.filter(pc.is_null(rows["reason"]))
            for key, positions in zip(scorable["key"].to_pylist(), scorable["positions"].to_pylist(), strict=True):
                named.setdefault(key, set()).update(positions)
    return {key: sorted(positions) for key, positions in named.items()}

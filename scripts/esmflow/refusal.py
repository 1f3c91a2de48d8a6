"""Refusals: why a sample's FASTA files cannot be used, as one line in the metadata of its catalog and sequences."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from esmflow.sealed import whole

_KEY = b"refused"


def with_refusal(schema: pa.Schema, line: str) -> pa.Schema:
    """The schema of a file without rows that tells why there are none."""
    return schema.with_metadata({_KEY: line.encode()})


def refusal(path: Path) -> str | None:
    """Why the sample of this catalog, or file of sequences, was refused; None if it was not.

    Raises DataError if the file is damaged.
    """
    line = (pq.read_schema(whole(path)).metadata or {}).get(_KEY)
    return None if line is None else line.decode()

"""The catalog: one row per record of a sample, and beside it the residues of its valid records."""

import logging
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from esmflow import files
from esmflow.errors import DataError, printable
from esmflow.inputs.fasta import Fasta
from esmflow.inputs.kinds import KINDS
from esmflow.origin import ANOTHER_CONTIG
from esmflow.progress import Progress
from esmflow.refusal import refusal, with_refusal
from esmflow.sealed import DamagedError, check, seal

CATALOG = pa.schema(
    [
        pa.field("index", pa.int64(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("description", pa.string(), nullable=False),
        pa.field("length", pa.int32(), nullable=False),
        pa.field("key", pa.binary(32)),
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("flags", pa.string(), nullable=False),
    ]
)
#: What it has besides where a file of the sample is of contigs: the `Origin` of each record, null for proteins.
ORIGIN = pa.schema(
    [
        pa.field("contig", pa.string()),
        pa.field("start", pa.int64()),
        pa.field("end", pa.int64()),
        pa.field("strand", pa.string()),
        pa.field("frame", pa.int8()),
    ]
)
SEQUENCES = pa.schema(
    [
        pa.field("key", pa.binary(32), nullable=False),
        pa.field("length", pa.int32(), nullable=False),
        pa.field("residues", pa.binary(), nullable=False),
    ]
)
_BATCH_RECORDS = 50_000
_BATCH_RESIDUES = 16 << 20
_LISTED = 20

log = logging.getLogger(__name__)


class TableWriter:
    """Collects rows and writes them as row groups, so that memory stays constant."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path, self._schema = path, schema
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")
        self._rows: list[tuple[object, ...]] = []

    def add(self, row: tuple[object, ...]) -> None:
        """Take a row."""
        self._rows.append(row)

    def flush(self) -> None:
        """Write the rows that were taken."""
        columns = zip(*self._rows, strict=True) if self._rows else [()] * len(self._schema)
        arrays = [pa.array(column, field.type) for column, field in zip(columns, self._schema, strict=True)]
        self._writer.write_batch(pa.record_batch(arrays, self._schema))
        self._rows.clear()

    def close(self) -> None:
        """End the file, and seal it."""
        self._writer.close()
        seal(self._path)


def ingest(sample: str, fastas: Iterable[Fasta], catalog: Path, sequences: Path, *, fail_on_invalid: bool) -> None:
    """Stream FASTA files into a sample's catalog and its file of sequences, in constant memory.

    `catalog` gets one row per record, in file order: status is `valid`, or `skipped` with a reason; length is in
    residues after cleaning (0 if skipped). `sequences` gets (key, length, residues) of each valid record.

    Raises DataError, which names the sample, if a file is no FASTA, is damaged or cannot be read, or holds nucleotides
    where proteins are due or the other way round, or, with `fail_on_invalid`, if any record is invalid.
    """
    try:
        _ingest(sample, fastas, catalog, sequences, fail_on_invalid=fail_on_invalid)
    except DataError as error:
        raise DataError(f"sample {sample}: {error}") from error


def refuse(error: DataError, catalog: Path, sequences: Path) -> None:
    """Write a catalog and a file of sequences without rows that tell why the sample cannot be used."""
    for path, schema in ((catalog, CATALOG), (sequences, SEQUENCES)):
        with files.atomic(path) as temporary:
            TableWriter(temporary, with_refusal(schema, str(error))).close()
    log.warning("left out: %s", error)


def _ingest(sample: str, fastas: Iterable[Fasta], catalog: Path, sequences: Path, *, fail_on_invalid: bool) -> None:
    fastas = list(fastas)
    of_contigs = any(KINDS[file.kind].of_contigs for file in fastas)
    invalid: list[str] = []
    records = skipped = refused = residues = buffered = 0
    contig: tuple[str | None, Path | None, int] = (None, None, 0)
    progress = Progress(log)
    with ExitStack() as stack:
        tables = []
        catalog_schema = pa.schema([*CATALOG, *ORIGIN]) if of_contigs else CATALOG
        for path, schema in ((catalog, catalog_schema), (sequences, SEQUENCES)):
            table = TableWriter(stack.enter_context(files.atomic(path)), schema)
            stack.callback(table.close)
            tables.append(table)
        catalog_table, sequence_table = tables
        for file in fastas:
            before = records
            for line, record in KINDS[file.kind].read(file, catalog.parent):
                length = len(record.residues)
                flags = ",".join(record.flags)
                origin: tuple[object, ...] = ()
                if of_contigs:
                    origin, last, contig = record.origin, contig, (record.origin.contig, file.path, line)
                    if contig != last and contig[0] is not None and contig[0] == last[0]:
                        flags = ",".join((*record.flags, ANOTHER_CONTIG))
                if record.reason is None:
                    key = record.key
                    row = (records, record.id, record.description, length, key, "valid", None, flags, *origin)
                    catalog_table.add(row)
                    sequence_table.add((key, length, record.residues))
                else:
                    row = (records, record.id, record.description, 0, None, "skipped", record.reason, flags, *origin)
                    catalog_table.add(row)
                    skipped += 1
                    # A contig without fragments, which has ends, is nothing to mend.
                    if record.origin.end is None:
                        refused += 1
                        if len(invalid) < _LISTED:
                            invalid.append(f"{file.path}:{line}: {record.id or '(no id)'}: {record.reason}")
                records += 1
                residues += length
                buffered += length + len(record.id) + len(record.description)
                if records % _BATCH_RECORDS == 0 or buffered > _BATCH_RESIDUES:
                    for table in tables:
                        table.flush()
                    buffered = 0
                    progress.report(f"{records:,} records, {residues:,} residues")
            if records == before:
                log.warning("%s: no records in this file", file.path)
        if invalid and fail_on_invalid:
            for text in invalid:
                log.error("%s", printable(text))
            raise DataError(
                f"{refused:,} of {records:,} records are invalid, the first is {invalid[0]} (the log of ingest lists "
                f"{len(invalid)}); mend the FASTA or set 'invalid: skip'"
            )
        for table in tables:
            table.flush()
    log.info("%s: %s records, %s skipped, %s residues", sample, f"{records:,}", f"{skipped:,}", f"{residues:,}")


def keys_of(catalog: Path, identifier: str) -> list[tuple[bytes, int]]:
    """Key and length of the sequences that bear an ID in a catalog. Raises DataError if there are none."""
    try:
        check(catalog)
        table = pq.read_table(catalog, columns=["key", "length", "reason"], filters=[("id", "=", identifier)])
    except (DamagedError, pa.ArrowException, OSError) as error:
        raise DataError(f"{catalog}: cannot be read as a catalog; give results/catalog/SAMPLE.parquet") from error
    if line := refusal(catalog):
        raise DataError(line)
    rows = table.to_pylist()
    if not rows:
        raise DataError(f"{catalog}: no record is called {identifier!r}")
    sequences = dict.fromkeys((row["key"], row["length"]) for row in rows if row["key"])
    if not sequences:
        raise DataError(f"{catalog}: {identifier} was skipped: {rows[0]['reason']}")
    return list(sequences)

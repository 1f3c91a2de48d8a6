"""Keeping a store: what is in it, whether it is whole, what may go, and where a sequence lies."""

import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from esmflow import database, files
from esmflow.errors import DataError
from esmflow.planned_model import AUTO, Space
from esmflow.progress import Progress
from esmflow.representation import Output
from esmflow.sealed import DamagedError, MalformedError, check, open_file
from esmflow.store.quarantine import QUARANTINE, SetAsideError, reading
from esmflow.store.store import committed, metadata_of
from esmflow.treatment import Treatment

_ROWS = 1024

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """A store file, as its name and footer tell."""

    path: Path
    model: str
    """The name that the model had in the config of the run that committed it."""
    weights: str
    """The first 16 hexadecimal digits of the SHA-256 of the weights."""
    treatment: Treatment
    precision: str
    """In which it was computed; `auto` where an earlier version left that to the device."""
    vectors: str
    """`float32` or `float16`."""
    sizes: dict[Output, int]
    """Bytes in the file of each output."""
    sequences: int
    bytes: int
    used: float
    """When a plan last counted on it, in seconds since the epoch, to a day."""


def paths(store: Path) -> list[Path]:
    """All committed files of a store. Raises DataError if there is no store."""
    if not store.is_dir():
        raise DataError(f"{store}: no such store; give the directory that 'store' names in the config")
    return committed(store / "embeddings")


def entries(store: Path, model: str | None = None) -> Iterator[Entry]:
    """The files of a store, or those of a model (its name in the config, or its `weights`).

    Raises DataError if a footer is damaged.
    """
    for path in paths(store):
        try:
            entry = _entry(path)
        except FileNotFoundError:
            continue  # Another process removed it.
        except DamagedError as error:
            raise DataError(
                f"{path}: is damaged ({error}); run store.py verify, which sets it aside, and snakemake again"
            ) from error
        if model in (None, entry.model, entry.weights):
            yield entry


def totals(listed: Iterable[Entry]) -> list[tuple[str, str, str, str, str, Output, int, int, int]]:
    """(model, weights, treatment, precision, vectors, output, files, sequences, bytes), sorted."""
    counts: Counter[tuple[str, str, str, str, str, Output]] = Counter()
    sequences, sizes = counts.copy(), counts.copy()
    for entry in listed:
        for output, size in entry.sizes.items():
            kind = (entry.model, entry.weights, str(entry.treatment), entry.precision, entry.vectors, output)
            counts[kind] += 1
            sequences[kind] += entry.sequences
            sizes[kind] += size
    return [(*kind, counts[kind], sequences[kind], sizes[kind]) for kind in sorted(counts)]


def verify(store: Path) -> None:
    """Read all of the store and check it; move what is damaged into its quarantine.

    Raises DataError if anything was damaged, with what is to be computed again and how.
    """
    names, whole, lost, unknown = paths(store), 0, 0, 0
    progress = Progress(log)
    for number, path in enumerate(names, 1):
        sequences: int | None = None
        try:
            with reading(path):
                sequences = open_file(path).metadata.num_rows
                _check(path)
            whole += 1
        except FileNotFoundError:
            continue  # Another process removed it.
        except SetAsideError:
            lost += sequences or 0
            unknown += sequences is None
        progress.report(f"{number:,} of {len(names):,} files")
    log.info("%s files are whole", f"{whole:,}")
    if broken := len(names) - whole:
        parts = [f"{lost:,} sequences"] * (lost > 0) + [f"those of {unknown:,} unreadable files"] * (unknown > 0)
        raise DataError(
            f"{store}: {broken:,} of {len(names):,} files were damaged and are now in {store / QUARANTINE}; "
            f"run snakemake again as usual, which plans anew and computes {' and '.join(parts)} where they are wanted"
        )


def prune(
    store: Path,
    *,
    keep_bytes: int | None = None,
    older_than_days: float | None = None,
    model: str | None = None,
    apply: bool = False,
) -> list[Entry]:
    """The files that may go, least recently used first; they are removed if `apply`.

    Each limit narrows the choice: files of `model`, not used for `older_than_days`, and no more of them than needed for
    the store (or what it has of `model`) to keep to `keep_bytes`. What killed processes left goes with them.
    """
    chosen = sorted(entries(store, model), key=lambda entry: (entry.used, entry.path))
    total = sum(entry.bytes for entry in chosen)
    result = []
    for entry in chosen:
        recent = older_than_days is not None and time.time() - entry.used < older_than_days * 86400
        if recent or (keep_bytes is not None and total <= keep_bytes):
            break
        total -= entry.bytes
        result.append(entry)
        if apply:
            entry.path.unlink(missing_ok=True)
    if apply:
        for space in store.glob("embeddings/*/*"):
            files.sweep(space)
    return result


def find(
    store: Path, key: bytes, *, model: str | None = None, output: Output | None = None
) -> list[tuple[Entry, int, str | None]]:
    """(file, row in it, why there are no vectors) of each place in the store that has a sequence.

    Raises DataError if there is none.
    """
    candidates = [entry for entry in entries(store, model) if output is None or output in entry.sizes]
    by_name = {str(entry.path.absolute()): entry for entry in candidates}
    rows: list[tuple[str, int, str | None]] = []
    if candidates:
        rows = duckdb.execute(
            "SELECT filename, file_row_number, reason FROM "
            "read_parquet($1, filename = true, file_row_number = true, hive_partitioning = false) WHERE key = $2 "
            "ORDER BY ALL",
            [[database.literal(entry.path) for entry in candidates], key],
        ).fetchall()
    if not rows:
        raise DataError(f"{store}: has no {output or 'embedding'} of this sequence{f' by {model}' if model else ''}")
    return [(by_name[name], row, reason) for name, row, reason in rows]


def values(entry: Entry, row: int, output: Output, length: int) -> np.ndarray:
    """An output of the sequence in that row, as it is stored: [embed_dim], or, if ragged, [kept residues, width].

    length: residues of the sequence. Raises IncompleteError if the file is damaged.
    """
    with reading(entry.path), open_file(entry.path) as file:
        flat: np.ndarray = file.read([str(output)]).column(0)[row].values.to_numpy()
    residues = int(entry.treatment.kept(np.array(length)))
    return flat.reshape(residues, -1) if output.ragged else flat


def _entry(path: Path) -> Entry:
    with open_file(path) as file:
        metadata, schema = file.metadata, file.schema_arrow
    sizes: Counter[Output] = Counter()
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            column = metadata.row_group(group).column(number)
            name = ".".join(column.path_in_schema.split(".")[:2])
            if name.startswith("layer"):
                sizes[Output.parse(name)] += column.total_compressed_size
    space = _space(path)
    return Entry(
        path,
        metadata_of(schema)["model"],
        space.weights_sha256,
        space.treatment,
        space.precision,
        space.vectors,
        dict(sizes),
        metadata.num_rows,
        path.stat().st_size,
        path.stat().st_mtime,
    )


def _space(path: Path) -> Space:
    """The part of the store that a file is in."""
    return Space.parse(path.parents[1].name, path.parent.name)


def _check(path: Path) -> None:
    """Raise DamagedError if a store file is not as it was committed, or was wrong even then."""
    check(path)
    with open_file(path) as file:
        precision = _space(path).precision
        computed = metadata_of(file.schema_arrow).get("precision", precision)
        if precision not in (computed, AUTO):
            raise MalformedError(f"it lies with what was computed in {precision}, and was computed in {computed}")
        outputs = [name for name in file.schema_arrow.names if name.startswith("layer")]
        if file.schema_arrow.field("key").type != pa.binary(32):
            raise MalformedError("its keys are not of 32 bytes")
        keys: set[bytes] = set()
        rows = 0
        for batch in file.iter_batches(_ROWS):
            rows += len(batch)
            keys.update(batch["key"].to_pylist())
            embedded = batch.filter(pc.is_null(batch["reason"]))
            for name in outputs:
                numbers = embedded[name].flatten()
                if numbers.null_count or not np.isfinite(numbers.to_numpy(zero_copy_only=False)).all():
                    raise MalformedError(f"{name} has values that are not finite")
    if not rows == len(keys) == file.metadata.num_rows:
        raise MalformedError(f"it has {rows} rows, {len(keys)} keys and says {file.metadata.num_rows}")

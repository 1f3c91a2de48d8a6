"""The store: embeddings that are content-addressed, immutable and shared by runs.

One Parquet file per committed shard, in a directory per (weights, treatment, precision, versions of letters and
numerics, numbers of vectors). A file's columns are `key` (SHA-256 of the residues), `reason` (why a sequence has no
vectors, else null) and a list of float32 or float16 per output, named as in `layer6.mean`: of fixed size for vectors;
for what grows with the protein, such as `per_tok`, an array whose last dimension varies fastest.

The time of change of a file is that of its last use.
"""

import os
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from esmflow import __version__, files
from esmflow.planned_model import Space
from esmflow.representation import Output, Values
from esmflow.sealed import open_file, seal
from esmflow.shortage import is_shortage
from esmflow.store.quarantine import SetAsideError, reading

#: How exact the time of a file's last use is, in seconds; what was used just before is not touched again.
_USE_INTERVAL = 24 * 3600


@dataclass(frozen=True)
class StoreFile:
    """A committed shard."""

    path: Path
    outputs: frozenset[Output]
    metadata: dict[str, str]


class Store:
    """A directory of committed shards."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, space: Space, shard: str) -> Path:
        """Where a shard of that name is committed."""
        return self.root / space.directory / f"{shard}.parquet"

    def paths(self, spaces: Iterable[Space], shard: str) -> list[Path]:
        """Where a shard of that name is committed in any of these spaces."""
        return [path for path in (self.path(space, shard) for space in spaces) if path.exists()]

    def has(self, spaces: Iterable[Space], shard: str) -> bool:
        """Whether a shard is committed in any of these spaces, and whole. A damaged one is set aside."""
        for path in self.paths(spaces, shard):
            with suppress(SetAsideError, FileNotFoundError), reading(path), open_file(path) as file:
                for _ in file.iter_batches():
                    pass
                return True
        return False

    def has_shortages(self, spaces: Iterable[Space], shard: str) -> bool:
        """Whether a shard is committed in any of these spaces with sequences that another attempt may embed."""
        for path in self.paths(spaces, shard):
            with suppress(SetAsideError, FileNotFoundError), reading(path), open_file(path) as file:
                if any(map(is_shortage, file.read(["reason"])["reason"].to_pylist())):
                    return True
        return False

    def files(self, space: Space) -> list[StoreFile]:
        """All committed shards of a space, by name. One whose footer, keys or reasons are damaged is set aside."""
        result = []
        for path in committed(self.root / space.directory):
            try:
                with reading(path), open_file(path) as file:
                    file.read(["key", "reason"])
                    schema = file.schema_arrow
            except (SetAsideError, FileNotFoundError):
                continue  # Damaged, or removed by another process since it was listed.
            outputs = frozenset(Output.parse(name) for name in schema.names if name.startswith("layer"))
            result.append(StoreFile(path, outputs, metadata_of(schema)))
        return result

    def require_writable(self, spaces: Iterable[Space]) -> None:
        """Raise OSError unless shards can be committed to these spaces, which is tried with a file without a name."""
        for directory in [self.root / space.directory for space in spaces]:
            directory.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=directory).close()

    def sweep(self, spaces: Iterable[Space]) -> None:
        """Remove from these spaces what killed processes left: temporary files and parts of shards."""
        for space in spaces:
            files.sweep(self.root / space.directory)


def committed(directory: Path) -> list[Path]:
    """The store files in a directory and below it, sorted. Raises OSError if one of these cannot be read."""

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    return sorted(
        Path(parent, name)
        for parent, _, names in os.walk(directory, onerror=refuse)
        for name in names
        if name.endswith(".parquet") and not name.startswith(".")
    )


#: How files of vectors are written: floats do not compress, and each page carries a checksum.
VECTOR_FILE = {
    "compression": {"id": "zstd"},
    "use_dictionary": False,
    "write_statistics": False,
    "write_page_checksum": True,
}
#: Rows that are read together; a table that needs few of a shard passes over the other groups.
_ROW_GROUP = 8192


def commit(
    path: Path,
    keys: pa.Array,
    reasons: Sequence[str | None],
    values: Mapping[Output, Values],
    metadata: Mapping[str, str],
    vectors: str = "float32",
) -> None:
    """Write a shard in one atomic step to the path that `Store.path` gave for it.

    keys: binary(32) [sequences]; values: of each output, of which those of sequences with a reason do not count;
    vectors: the numbers to which they are rounded. A sequence with a value beyond their range gets a reason.
    Committing the same shard again replaces it with an equal one.
    """
    rounded = {output: _rounded(of_output, output.dtype(vectors)) for output, of_output in values.items()}
    beyond = {
        row: f"{output} is beyond the range of float16"
        for output, of_output in rounded.items()
        if output.dtype(vectors) == np.float16
        for row in _not_finite(of_output)
    }
    reasons = [reason or beyond.get(row) for row, reason in enumerate(reasons)]
    fields = [pa.field("key", pa.binary(32), nullable=False), pa.field("reason", pa.string())]
    columns: list[pa.Array] = [keys, pa.array(reasons, pa.string())]
    refused = [row for row, reason in enumerate(reasons) if reason]
    for output, of_sequences in rounded.items():
        column = _column(output, of_sequences, refused)
        fields.append(pa.field(str(output), column.type, nullable=False))
        columns.append(column)
    schema = pa.schema(fields, metadata_for(metadata))
    _commit(path, pa.Table.from_arrays(columns, schema=schema))


def merge(path: Path, parts: Sequence[Path]) -> None:
    """Commit the rows of several files as one, in one atomic step, and remove those files."""
    tables = []
    for part in parts:
        with open_file(part) as file:
            tables.append(file.read())
    # A part that was skipped does not tell what the others were computed with.
    metadata = {name: value for table in tables for name, value in table.schema.metadata.items()}
    _commit(path, pa.concat_tables(tables).replace_schema_metadata(metadata))
    for part in parts:
        part.unlink(missing_ok=True)


def _commit(path: Path, table: pa.Table) -> None:
    with files.atomic(path) as temporary:
        pq.write_table(table, temporary, _ROW_GROUP, **VECTOR_FILE)
        seal(temporary)


def _rounded(values: Values, dtype: np.dtype) -> Values:
    """The values in another dtype, rounded to nearest; infinite where they are beyond its range."""
    with np.errstate(over="ignore"):
        if isinstance(values, np.ndarray):
            return values.astype(dtype, copy=False)
        return [value.astype(dtype, copy=False) for value in values]


def _not_finite(values: Values) -> list[int]:
    """The rows that have a number which is not finite."""
    if isinstance(values, np.ndarray):
        rows: list[int] = np.flatnonzero(~np.isfinite(values).all(axis=1)).tolist()
        return rows
    return [row for row, value in enumerate(values) if not np.isfinite(value).all()]


def _column(output: Output, values: Values, refused: Sequence[int]) -> pa.Array:
    """The values of sequences, with zeros where they are refused."""
    if not output.ragged:
        vectors = np.asarray(values)
        if refused:
            vectors = vectors.copy()
            vectors[refused] = 0
        return vector_array(vectors)
    arrays = list(values)
    for row in refused:
        arrays[row] = np.zeros_like(arrays[row])
    offsets = np.concatenate([[0], np.cumsum([array.size for array in arrays])])
    flat = pa.array(np.concatenate([array.reshape(-1) for array in arrays]))
    return pa.LargeListArray.from_arrays(pa.array(offsets), flat)


def vector_array(values: np.ndarray) -> pa.FixedSizeListArray:
    """float32 or float16 [n, embed_dim] as an Arrow fixed-size list, without a copy."""
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, type=vector_type(values.dtype, values.shape[1]))


def vector_type(dtype: np.dtype, embed_dim: int) -> pa.FixedSizeListType:
    """The type of a column of vectors."""
    return pa.list_(pa.field("element", pa.from_numpy_dtype(dtype), nullable=False), embed_dim)


def metadata_for(values: Mapping[str, str]) -> dict[str, str]:
    """Key-value metadata of a file of vectors: `values` and the versions, with the prefix `esmflow.`."""
    versions = {"esmflow": __version__} | {package: version(package) for package in ("torch", "numpy", "pyarrow")}
    tagged = dict(values) | {f"version.{package}": number for package, number in versions.items()}
    return {f"esmflow.{name}": value for name, value in tagged.items()}


def metadata_of(schema: pa.Schema) -> dict[str, str]:
    """The inverse of `metadata_for`."""
    return {
        name.decode().removeprefix("esmflow."): value.decode()
        for name, value in (schema.metadata or {}).items()
        if name.startswith(b"esmflow.")
    }


def needs_mark(path: Path) -> bool:
    """Whether a store file's time of last use is so old that `mark_used` would renew it."""
    return time.time() - path.stat().st_mtime > _USE_INTERVAL


def mark_used(path: Path) -> None:
    """Set the time of a store file's last use to now, where we may."""
    with suppress(OSError):
        os.utime(path)

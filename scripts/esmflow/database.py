"""DuckDB connections for joins that need not fit into memory."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

MEMORY_LIMIT = "512MB"
#: What DuckDB raises for a Parquet file that is damaged.
UNREADABLE = (duckdb.IOException, duckdb.InvalidInputException)


@contextmanager
def connect(directory: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database of its own that spills to a temporary directory within `directory`, which goes with it."""
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix=".duckdb-", ignore_cleanup_errors=True) as spill:
        settings: dict[str, str | bool | int | float | list[str]] = {
            "memory_limit": MEMORY_LIMIT,
            "temp_directory": spill,
            "preserve_insertion_order": "false",
        }
        with duckdb.connect(config=settings) as connection:
            yield connection

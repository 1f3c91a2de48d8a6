"""DuckDB connections for joins that need not fit into memory."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

MEMORY_LIMIT = "512MB"
#: What DuckDB raises for a Parquet file that is damaged.
UNREADABLE = (duckdb.IOException, duckdb.InvalidInputException)


@contextmanager
def connect(spill: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database in memory that spills to the directory `spill`, which is removed before and afterwards."""
    settings: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": MEMORY_LIMIT,
        "temp_directory": str(spill),
        "preserve_insertion_order": "false",
    }
    shutil.rmtree(spill, ignore_errors=True)
    try:
        with duckdb.connect(config=settings) as connection:
            yield connection
    finally:
        shutil.rmtree(spill, ignore_errors=True)

"""DuckDB connections for joins that need not fit into memory."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

from esmflow import files

MEMORY_LIMIT = "512MB"
#: What DuckDB raises for a Parquet file that is damaged: its base class, besides those for input.
UNREADABLE = duckdb.Error


@contextmanager
def connect(target: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database in memory, made for the output `target`, that spills to a temporary directory beside it.

    Where order matters, Arrow data is to be had from `sql`: that of `execute` comes in any order, ORDER BY or not.
    """
    spill = files.temporary_name(target.with_name(f"{target.name}.spill"))
    settings: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": MEMORY_LIMIT,
        "threads": 2,
        "temp_directory": str(spill),
        "preserve_insertion_order": "false",
    }
    try:
        with duckdb.connect(config=settings) as connection:
            yield connection
    finally:
        shutil.rmtree(spill, ignore_errors=True)

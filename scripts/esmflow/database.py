"""DuckDB connections for joins that need not fit into memory."""

import errno
import itertools
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

from esmflow import files
from esmflow.errors import DataError, IncompleteError, WriteError

#: What DuckDB may have of memory.
MEMORY_MB = 512
#: What it needs at least for rows that it groups, though it spills: for 100 million, 1 GB was too little, 2 GB enough.
_BYTES_PER_ROW = 32
#: What DuckDB raises for a Parquet file that is damaged.
UNREADABLE = (duckdb.IOException, duckdb.InvalidInputException)
_numbers = itertools.count()


@contextmanager
def connect(target: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database in memory, made for the output `target`, that spills to a temporary directory beside it.

    Where order matters, Arrow data is to be had from `sql`: that of `execute` comes in any order, ORDER BY or not.
    Raises WriteError if there is no space to spill, IncompleteError for a file that cannot be read, DataError for one
    with a damaged page.
    """
    spill = files.temporary_name(target.with_name(f"{target.name}.spill"))
    settings: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": f"{MEMORY_MB}MB",
        # As the rules ask for one core; those for reading ahead would be four for each of the machine's.
        "threads": 1,
        "async_threads": 1,
        "temp_directory": str(spill),
        "preserve_insertion_order": "false",
    }
    try:
        with duckdb.connect(config=settings) as connection:
            yield connection
    except duckdb.OutOfMemoryException as error:
        raise WriteError(
            f"{target.parent}: cannot be written: no space for temporary files, or no memory; free some and run again"
        ) from error
    except duckdb.IOException as error:
        text = str(error).partition("\n")[0]
        if any(os.strerror(number) in text for number in (errno.ENOSPC, errno.EDQUOT)):
            raise WriteError(f"{target.parent}: cannot be written: {text}; free some space and run again") from error
        raise IncompleteError(f"{target}: what it is made from could not be read ({text}); run again") from error
    except duckdb.Error as error:
        # The base class itself stands for the damaged header of a page.
        if type(error) is not duckdb.Error:
            raise
        raise DataError(f"{target}: what it is made from is damaged ({str(error).partition(chr(10))[0]})") from error
    finally:
        shutil.rmtree(spill, ignore_errors=True)


def make_room(connection: duckdb.DuckDBPyConnection, paths: Iterable[Path]) -> None:
    """Let a connection have the memory that it takes to group the rows of these Parquet files by their keys."""
    [(rows,)] = connection.execute(
        "SELECT count(*) FROM read_parquet($1, hive_partitioning = false)", [list(map(literal, paths))]
    ).fetchall()
    if (memory := rows * _BYTES_PER_ROW // 1_000_000) > MEMORY_MB:
        connection.execute(f"SET memory_limit = '{memory}MB'")


def literal(path: Path) -> str:
    """A path for `read_parquet` and `read_csv`, which see patterns, a home and protocols in what they are given.

    Call them with `hive_partitioning = false`, or a directory `id=abc` makes a column of that name. Their `filename`
    is `path.absolute()`.
    """
    return re.sub(r"([*?\[])", r"[\1]", str(path.absolute()))


def keep(connection: duckdb.DuckDBPyConnection, rows: duckdb.DuckDBPyRelation) -> duckdb.DuckDBPyRelation:
    """The same rows, computed now and kept, in a table that is known by nothing but what is returned."""
    name = f"kept{next(_numbers)}"
    rows.create(name)
    return connection.table(name)


def forget(connection: duckdb.DuckDBPyConnection, kept: duckdb.DuckDBPyRelation) -> None:
    """Free what `keep` has kept."""
    connection.execute(f"DROP TABLE {kept.alias}")

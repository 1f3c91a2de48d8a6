"""What is missing: the unique sequences of all samples, set against the store."""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb

from esmflow import database
from esmflow.descriptor import Descriptor
from esmflow.spec import WHOLE, ModelSpec, Output
from esmflow.store.store import Space, Store, damaged, mark_used, needs_mark

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batch:
    """Missing sequences that are treated alike and lack the same outputs."""

    treatment: str
    outputs: list[Output]
    found: list[str]
    """The values of `found` in table `todo` that make up the batch."""


def load_sequences(connection: duckdb.DuckDBPyConnection, sequences: Mapping[str, Path]) -> int:
    """Make tables `entry` (sample, key, place, length) and `wanted` (unique key, place, length).

    `place` is where a sequence lies first: the number of the sample's file and the row in it, as file << 32 | row.
    Returns the greatest length.
    """
    connection.execute(
        """
        CREATE TABLE entry AS
        SELECT sample, key, sample << 32 | min(file_row_number) AS place, any_value(length) AS length
        FROM (SELECT *, (list_position($1, filename) - 1)::BIGINT AS sample
              FROM read_parquet($1, filename = true, file_row_number = true))
        GROUP BY sample, key
        """,
        [[str(path) for path in sequences.values()]],
    )
    connection.execute(
        "CREATE TABLE wanted AS SELECT key, min(place) AS place, any_value(length) AS length FROM entry GROUP BY key"
    )
    [(longest,)] = connection.execute("SELECT coalesce(max(length), 0) FROM wanted").fetchall()
    return int(longest)


def missing_batches(
    connection: duckdb.DuckDBPyConnection,
    spec: ModelSpec,
    descriptor: Descriptor,
    outputs: Sequence[Output],
    store: Store,
) -> list[Batch]:
    """Make table `todo` (key, place, length, treatment, found) of `wanted`; return the batches that lack outputs.

    `found` has a bit for each group of store files with the same outputs, set if the group holds the sequence.
    """
    groups: list[tuple[str, frozenset[Output], list[str]]] = []
    for treatment in spec.treatments:
        by_outputs: defaultdict[frozenset[Output], list[str]] = defaultdict(list)
        for file in store.files(Space(descriptor.sha256, treatment, spec.precision)):
            by_outputs[file.outputs & frozenset(outputs)].append(str(file.path))
        groups += [(treatment, held, paths) for held, paths in by_outputs.items() if held]
    connection.execute("CREATE OR REPLACE TABLE have (key BLOB, treatment VARCHAR, found BIT)")
    for number, (treatment, _, paths) in enumerate(groups):
        try:
            connection.execute(
                "INSERT INTO have SELECT key, $1, $2::BIT FROM read_parquet($3) WHERE key IN (SELECT key FROM wanted)",
                [treatment, "".join(str(int(number == other)) for other in range(len(groups))), paths],
            )
            _mark_used(connection, [path for path in paths if needs_mark(Path(path))])
        except database.UNREADABLE as error:
            raise damaged(Path(paths[0]).parent, error) from error
    connection.execute(
        """
        CREATE OR REPLACE TABLE todo AS
        SELECT key, any_value(place) AS place, any_value(length) AS length, treatment,
               coalesce(bit_or(found), $4::BIT) AS found
        FROM (SELECT *, CASE WHEN length <= $1 THEN $2 ELSE $3 END AS treatment FROM wanted)
        LEFT JOIN have USING (key, treatment)
        WHERE treatment IS NOT NULL
        GROUP BY key, treatment
        """,
        [spec.max_length, WHOLE, spec.long_treatment, "0" * max(len(groups), 1)],
    )
    batches: dict[tuple[str, tuple[Output, ...]], list[str]] = {}
    rows = connection.execute("SELECT treatment, found, count(*) FROM todo GROUP BY ALL ORDER BY ALL").fetchall()
    for treatment, found, count in rows:
        held_outputs = frozenset().union(*(groups[number][1] for number, bit in enumerate(found) if bit == "1"))
        missing = tuple(output for output in outputs if output not in held_outputs)
        log.info(
            "%s: %s sequences (%s) have %d of %d outputs",
            spec.name,
            f"{count:,}",
            treatment,
            len(outputs) - len(missing),
            len(outputs),
        )
        if missing:
            batches.setdefault((treatment, missing), []).append(found)
    return [Batch(treatment, list(missing), found) for (treatment, missing), found in batches.items()]


def _mark_used(connection: duckdb.DuckDBPyConnection, paths: Sequence[str]) -> None:
    """Note that those store files are used that have a wanted sequence."""
    if paths:
        used = connection.execute(
            "SELECT DISTINCT filename FROM read_parquet($1, filename = true) WHERE key IN (SELECT key FROM wanted)",
            [paths],
        ).fetchall()
        for (path,) in used:
            mark_used(Path(path))

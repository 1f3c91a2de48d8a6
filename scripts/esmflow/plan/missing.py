"""What is missing: the unique sequences of all samples, set against the store."""

import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from esmflow import database
from esmflow.job import SHARD
from esmflow.planned_model import PlannedModel
from esmflow.representation import Output
from esmflow.sealed import whole
from esmflow.shortage import PATTERN
from esmflow.store.quarantine import failed
from esmflow.store.store import Store, mark_used, needs_mark
from esmflow.treatment import WHOLE, Treatment

_ROWS = 20_000
_OF_BATCH = "FROM todo WHERE treatment = $1 AND list_contains($2::BIT[], pattern)"

log = logging.getLogger(__name__)


class Histogram(NamedTuple):
    """How many sequences there are of each length."""

    lengths: np.ndarray
    """Residues: int [different lengths], ascending."""
    counts: np.ndarray
    """int64 [different lengths]."""


@dataclass(frozen=True)
class Batch:
    """Missing sequences that are treated alike and lack the same outputs.

    Those that met a shortage before are apart from others, since a sequence that kills its process takes many attempts
    to be found among others.
    """

    treatment: Treatment
    outputs: list[Output]
    patterns: list[str]
    """Which groups of store files have the sequences: a bit for each group, and one more for a shortage that they met
    there. The work list knows them."""


@dataclass(frozen=True)
class _Group:
    """Store files of one space that have the same of the outputs that are asked for."""

    treatment: Treatment
    outputs: frozenset[Output]
    paths: list[Path]


class WorkList:
    """The unique sequences of all samples, and those of them that a model lacks.

    A sequence is known by its place, which is where it lies first: the number of its sample's file and the row in it,
    as file << 32 | row. Models take turns: `batches` begins that of one, and the batches of the one before are gone.
    """

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, sequences: Mapping[str, Path], only: Sequence[Path] = ()
    ) -> None:
        """`sequences` has a file for each sample; with files `only`, what none of them has in `key` is left out.

        Raises DataError if a file is damaged.
        """
        self._connection = connection
        # What streams from a connection ends when the same is asked for something else.
        self._noting = connection.cursor()
        self._samples, self._paths = list(sequences), list(map(whole, sequences.values()))
        database.make_room(connection, self._paths)
        connection.execute(
            f"""
            CREATE TABLE entry AS
            SELECT sample, key, sample << 32 | min(file_row_number) AS place, any_value(length) AS length
            FROM (SELECT *, (list_position($1, filename) - 1)::BIGINT AS sample
                  FROM read_parquet($2, filename = true, file_row_number = true, hive_partitioning = false))
            {"WHERE key IN (SELECT key FROM read_parquet($3, hive_partitioning = false))" if only else ""}
            GROUP BY sample, key
            """,
            [
                [str(path.absolute()) for path in self._paths],
                list(map(database.literal, self._paths)),
                *([[database.literal(whole(path)) for path in only]] if only else []),
            ],
        )
        connection.execute(
            "CREATE TABLE wanted AS "
            "SELECT key, min(place) AS place, any_value(length) AS length FROM entry GROUP BY key"
        )

    @cached_property
    def longest(self) -> int:
        """Residues of the longest sequence; 0 if there is none."""
        [(longest,)] = self._connection.execute("SELECT coalesce(max(length), 0) FROM wanted").fetchall()
        return int(longest)

    @cached_property
    def records(self) -> dict[str, int]:
        """How many valid records each sample has."""
        counts = [int(pq.read_metadata(path).num_rows) for path in self._paths]
        return dict(zip(self._samples, counts, strict=True))

    @cached_property
    def histograms(self) -> dict[str, Histogram]:
        """The lengths of each sample's sequences, each of them counted once."""
        columns = self._connection.execute(
            "SELECT sample, length, count(*) AS n FROM entry GROUP BY ALL ORDER BY ALL"
        ).fetchnumpy()
        bounds = np.searchsorted(columns["sample"], np.arange(len(self._samples) + 1))
        return {
            sample: Histogram(columns["length"][first:stop], columns["n"][first:stop])
            for sample, first, stop in zip(self._samples, bounds[:-1], bounds[1:], strict=True)
        }

    def batches(self, model: PlannedModel, store: Store) -> list[Batch]:
        """What the model lacks in the store. Store files that have a sequence of the samples are marked as used.

        What killed processes left in the model's part of the store is removed.
        """
        store.sweep(model.spaces)
        groups = _groups(model, store)
        self._connection.execute("CREATE OR REPLACE TABLE have (key BLOB, treatment VARCHAR, pattern BIT)")
        # The last bit is for shortages.
        places = range(len(groups) + 1)
        bits = ["".join(str(int(number == place)) for place in places) for number in places]
        for group, bit in zip(groups, bits, strict=False):
            self._look_into(group, bit, shortage=bits[-1])
        long_treatment = model.spec.long_treatment
        self._connection.execute(
            """
            CREATE OR REPLACE TABLE todo AS
            SELECT place, length, treatment, coalesce(pattern, $4::BIT) AS pattern
            FROM (SELECT *, CASE WHEN length <= $1 THEN $2 ELSE $3 END AS treatment FROM wanted)
            LEFT JOIN (SELECT key, treatment, bit_or(pattern) AS pattern FROM have GROUP BY key, treatment)
            USING (key, treatment)
            WHERE treatment IS NOT NULL
            """,
            [model.spec.max_length, str(WHOLE), long_treatment and str(long_treatment), "0" * len(bits)],
        )
        self._connection.execute("CREATE OR REPLACE TABLE cut (place BIGINT, shard VARCHAR)")
        patterns: dict[tuple[str, tuple[Output, ...], bool], list[str]] = {}
        for treatment, pattern, count in self._connection.execute(
            "SELECT treatment, pattern, count(*) FROM todo GROUP BY ALL ORDER BY ALL"
        ).fetchall():
            stored = set().union(*(group.outputs for group, bit in zip(groups, pattern, strict=False) if bit == "1"))
            missing = tuple(output for output in model.outputs if output not in stored)
            progress = f"{len(model.outputs) - len(missing)} of {len(model.outputs)} outputs"
            log.info("%s: %s sequences (%s) have %s", model.name, f"{count:,}", treatment, progress)
            if missing:
                patterns.setdefault((treatment, missing, pattern[-1] == "1"), []).append(pattern)
        return [Batch(Treatment.parse(name), list(missing), alike) for (name, missing, _), alike in patterns.items()]

    def histogram(self, batch: Batch) -> Histogram:
        """The lengths of a batch's sequences."""
        columns = self._connection.execute(
            f"SELECT length, count(*) AS n {_OF_BATCH} GROUP BY length ORDER BY length", _parameters(batch)
        ).fetchnumpy()
        return Histogram(columns["length"], columns["n"])

    def sequences(self, batch: Batch) -> Iterator[tuple[pa.Table, np.ndarray]]:
        """A batch's sequences in order of the samples: tables of key and residues, and int64 places of their rows."""
        reader = self._connection.sql(
            f"SELECT place {_OF_BATCH} ORDER BY place", params=_parameters(batch)
        ).to_arrow_reader(_ROWS)
        places = (rows["place"].to_numpy() for rows in reader)
        waiting = np.empty(0, np.int64)
        for number, path in enumerate(self._paths):
            begin = number << 32
            # With pre_buffer, which is the default, pyarrow would keep the whole file in memory.
            for rows in pq.ParquetFile(path, pre_buffer=False).iter_batches(_ROWS, columns=SHARD.names):
                end = begin + len(rows)
                while (not waiting.size or waiting[-1] < end) and (more := next(places, None)) is not None:
                    waiting = np.concatenate([waiting, more])
                count = np.searchsorted(waiting, end)
                if count:
                    yield pa.Table.from_batches([rows.take(pa.array(waiting[:count] - begin))], SHARD), waiting[:count]
                waiting, begin = waiting[count:], end

    def note(self, shard: str, places: np.ndarray) -> None:
        """Remember that the sequences at these places went to a shard of the model whose turn it is."""
        self._noting.register("written", pa.table({"place": places}))
        self._noting.execute("INSERT INTO cut SELECT place, $1 FROM written", [shard])
        self._noting.unregister("written")

    def samples_of_shards(self) -> dict[str, set[str]]:
        """The samples that have a sequence in each shard that was noted in this model's turn."""
        samples: defaultdict[str, set[str]] = defaultdict(set)
        for shard, sample in self._connection.execute(
            "SELECT DISTINCT shard, sample FROM cut JOIN wanted USING (place) JOIN entry USING (key)"
        ).fetchall():
            samples[shard].add(self._samples[sample])
        return samples

    def _look_into(self, group: _Group, pattern: str, *, shortage: str) -> None:
        """Add to table `have` which sequences of the samples the group's files have, or lack for a shortage."""
        try:
            self._connection.execute(
                "INSERT INTO have SELECT key, $1, CASE WHEN regexp_matches(reason, $2) THEN $3 ELSE $4 END::BIT "
                "FROM read_parquet($5, hive_partitioning = false) WHERE key IN (SELECT key FROM wanted)",
                [str(group.treatment), PATTERN, shortage, pattern, list(map(database.literal, group.paths))],
            )
            if stale := [path for path in group.paths if needs_mark(path)]:
                used = self._connection.execute(
                    "SELECT DISTINCT filename FROM read_parquet($1, filename = true, hive_partitioning = false) "
                    "WHERE key IN (SELECT key FROM wanted)",
                    [list(map(database.literal, stale))],
                ).fetchall()
                for (path,) in used:
                    mark_used(Path(path))
        except database.UNREADABLE as error:
            raise failed(group.paths, error) from error


def _parameters(batch: Batch) -> list[object]:
    return [str(batch.treatment), batch.patterns]


def _groups(model: PlannedModel, store: Store) -> list[_Group]:
    """The store's files that have any of the model's outputs."""
    groups = []
    for space in model.spaces:
        paths: defaultdict[frozenset[Output], list[Path]] = defaultdict(list)
        for file in store.files(space):
            paths[file.outputs & frozenset(model.outputs)].append(file.path)
        groups += [_Group(space.treatment, outputs, alike) for outputs, alike in paths.items() if outputs]
    return groups

"""Tables of likelihoods: how well a model foresees each record's residues."""

import logging
from collections.abc import Mapping
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from esmflow import database, files
from esmflow.planned_model import PlannedModel
from esmflow.sealed import seal
from esmflow.store.store import Store, metadata_for
from esmflow.tables.located import LocatedRecords
from esmflow.tables.masked import masked_values

#: What a representation `likelihoods` sums up, see `representation.py`.
_SUMS = ("log_p", "residues", "entropy")

log = logging.getLogger(__name__)


def write_likelihoods(
    catalog: Path, model: PlannedModel, store: Store, table: Path, copies: Path | None = None
) -> None:
    """Write a sample's table of likelihoods: a row for each embedded record, in file order.

    Columns: `id`, `length`; `wt_perplexity`, exp(-mean log p(residue as it is)), read with nothing masked;
    `masked_perplexity`, the same with each residue masked in turn (pseudo-perplexity: Salazar et al. 2020,
    doi:10.18653/v1/2020.acl-main.240; null if a masked copy was skipped), if the list of the sample's masked copies
    is given; and `mean_entropy`. Perplexities are over the residues that are one of the 20 amino acids, by the softmax
    over the whole vocabulary, and null if there are none. Of a long protein it is the residues that the model keeps.
    Raises IncompleteError as `features.write_table` does.
    """
    [output] = model.asked_for(["likelihoods"]).outputs
    with database.connect(table) as connection:
        located = LocatedRecords(connection, catalog, model, output, store)
        numbered = located.embedded.project("id, length, place, row_number() OVER (ORDER BY index) - 1 AS target")
        records = database.keep(connection, numbered.order("place"))
        sums = np.empty((len(records), len(_SUMS)), np.float64)
        for column, rows, targets in located.gather(records):
            sums[targets] = column.flatten().to_numpy().reshape(-1, len(_SUMS))[rows]
        rows = records.select("id", "length", "target").order("target").to_arrow_table()
        log_p, residues, entropy = sums.T
        columns = {
            "id": rows["id"],
            "length": rows["length"],
            "wt_perplexity": _perplexity(log_p, residues),
            "mean_entropy": _numbers(entropy / model.spec.kept(rows["length"].to_numpy())),
        }
        if copies:
            keys = _keys(connection, catalog, located)
            by_key = _masked(connection, copies, model, store, table)
            log_p, residues = np.array([by_key.get(key, (np.nan, np.nan)) for key in keys]).reshape(-1, 2).T
            columns["masked_perplexity"] = _perplexity(log_p, residues)
        order = ("id", "length", "wt_perplexity", "masked_perplexity", "mean_entropy")
        content = pa.table({name: columns[name] for name in order if name in columns})
        with files.atomic(table) as temporary:
            pq.write_table(
                content.replace_schema_metadata(metadata_for(located.provenance)), temporary, compression="zstd"
            )
            seal(temporary)
        log.info("%s records: %s with likelihoods", f"{located.records:,}", f"{len(content):,}")


def _keys(connection: duckdb.DuckDBPyConnection, catalog: Path, located: LocatedRecords) -> list[bytes]:
    """The key of each embedded record, in file order."""
    listed = connection.read_parquet(database.literal(catalog), hive_partitioning=False).select("index", "key")
    keyed = located.embedded.select("index").set_alias("embedded").join(listed.set_alias("listed"), "index")
    keys: list[bytes] = keyed.order("index").to_arrow_table()["key"].to_pylist()
    return keys


def _masked(
    connection: duckdb.DuckDBPyConnection, copies: Path, model: PlannedModel, store: Store, beside: Path
) -> Mapping[bytes, tuple[float, float]]:
    """By key: the sum of log p(residue as it is) with each masked in turn, and how many residues it is of."""
    sums = {}
    with masked_values(connection, copies, model, store, beside) as values:
        for key, rows in values.each():
            if not values.missing(rows):
                own = values.own(rows)
                sums[key] = float(np.nansum(own)), float(np.isfinite(own).sum())
    return sums


def _perplexity(log_p: np.ndarray, residues: np.ndarray) -> pa.Array:
    """From sums of log p over so many residues."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return _numbers(np.where(residues > 0, np.exp(-log_p / residues), np.nan))


def _numbers(values: np.ndarray) -> pa.Array:
    """float32, null where there is no number."""
    return pa.array(values.astype(np.float32), from_pandas=True)

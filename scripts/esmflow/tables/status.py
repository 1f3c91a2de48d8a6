"""Status files: what became of each record of a sample."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import duckdb

from esmflow import database, files
from esmflow.planned_model import ModelSpec, PlannedModel
from esmflow.store.store import Store
from esmflow.tables.located import LocatedRecords

_BATCH = 50_000


def write_status(
    catalog: Path, models: Sequence[PlannedModel], store: Store, status: Path, copies: Mapping[str, Path]
) -> None:
    """Write a sample's status file: id, length, status, reason and flags of each record, in file order.

    copies: for each model that masks, the list of the sample's masked copies.
    A record is `embedded` if every output of every model has it, else `skipped` with the first reason found. A reason
    or flag that does not hold for all models names its model. Raises IncompleteError if a valid record is neither in
    the store nor skipped with a reason.
    """
    with database.connect(status) as connection:
        connection.execute("CREATE TABLE outcome (index BIGINT, model VARCHAR, reason VARCHAR)")
        for model in models:
            for output in model.unmasked.outputs:
                located = LocatedRecords(connection, catalog, model, output, store)
                located.skipped.select("index", duckdb.ConstantExpression(model.name), "reason").insert_into("outcome")
                located.drop()
            if model.masks:
                skipped = _skipped_copies(connection, catalog, copies[model.name], model, store)
                skipped.select("index", duckdb.ConstantExpression(model.name), "reason").insert_into("outcome")
        connection.execute(
            "CREATE TABLE refused AS SELECT index, CASE WHEN count(*) = $1 AND count(DISTINCT reason) = 1 "
            "THEN min(reason) ELSE min(model || ': ' || reason) END AS refusal FROM "
            "(SELECT index, model, min(reason) AS reason FROM outcome GROUP BY index, model) GROUP BY index",
            [len(models)],
        )
        reader = connection.sql(
            "SELECT id, length, coalesce(reason, refusal) AS reason, flags "
            "FROM read_parquet($1, hive_partitioning = false) LEFT JOIN refused USING (index) ORDER BY index",
            params=[database.literal(catalog)],
        ).to_arrow_reader(_BATCH)
        specs = [model.spec for model in models]
        with files.atomic(status) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter="\t", lineterminator="\n")
            writer.writerow(["id", "length", "status", "reason", "flags"])
            for batch in reader:
                for row in batch.to_pylist():
                    flags = [flag for flag in [row["flags"], *_length_flags(specs, row["length"])] if flag]
                    outcome = "skipped" if row["reason"] else "embedded"
                    writer.writerow([row["id"], row["length"], outcome, row["reason"] or "", ",".join(flags)])


def _skipped_copies(
    connection: duckdb.DuckDBPyConnection, catalog: Path, copies: Path, model: PlannedModel, store: Store
) -> duckdb.DuckDBPyRelation:
    """The records of which a masked copy has no values: index, reason."""
    [output] = model.of_copies.outputs
    skipped = LocatedRecords(connection, copies, model.of_copies, output, store).skipped.set_alias("skipped")
    listed = connection.read_parquet(database.literal(copies), hive_partitioning=False)
    records = connection.read_parquet(database.literal(catalog), hive_partitioning=False)
    of_sequences = skipped.join(listed.select("index", "sequence").set_alias("copies"), "index")
    named = of_sequences.join(records.project("index AS record, key").set_alias("records"), "sequence = key")
    return named.project("record AS index, reason")


def _length_flags(specs: Sequence[ModelSpec], length: int) -> list[str]:
    """How the models treat a record for its length, with a model's name where they differ."""
    treatments = {spec.name: spec.treatment(length) for spec in specs}
    flags = {model: treatment.flag(length) for model, treatment in treatments.items() if treatment}
    if len(flags) == len(specs) and len(set(flags.values())) == 1:
        return [text for text in [next(iter(flags.values()))] if text]
    return [f"{model}:{text}" for model, text in flags.items() if text]

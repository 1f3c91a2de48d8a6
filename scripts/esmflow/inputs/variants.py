"""The sheet of variants, and its lines set against a sample's records: a row for each, as in a catalog."""

import logging
from collections.abc import Collection, Mapping
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from esmflow import database, files
from esmflow.alphabet import AMINO_ACIDS
from esmflow.errors import ConfigError, passing
from esmflow.inputs.catalog import TableWriter
from esmflow.inputs.samples import delimiter_of
from esmflow.refusal import refusal, with_refusal
from esmflow.variant import Substitution, misfit, parse, residues_of

#: What a catalog has, and of each line its text and its substitutions: positions from 0, and numbers of the letters
#: among the 20 amino acids; none if the line is refused.
MUTANTS = pa.schema(
    [
        pa.field("index", pa.int64(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("mutant", pa.string(), nullable=False),
        pa.field("length", pa.int32(), nullable=False),
        pa.field("key", pa.binary(32)),
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("positions", pa.list_(pa.int32()), nullable=False),
        pa.field("letters", pa.list_(pa.int8()), nullable=False),
    ]
)
_COLUMNS = ("sample", "id", "mutant")
_ROWS = 50_000

log = logging.getLogger(__name__)


def read_variants(sheet: Path, samples: Collection[str]) -> pa.Table:
    """The lines of a sheet: `sample`, `id`, `mutant`, as text without white space about it.

    Raises ConfigError if it cannot be read, lacks a column or names a sample that there is not.
    """
    try:
        with sheet.open(encoding="utf-8-sig") as file:
            header = next((line for line in file if line.strip()), "").rstrip("\r\n")
        delimiter = delimiter_of(header)
        names = [name.strip(' "').lower() for name in header.split(delimiter)]
        if missing := [name for name in _COLUMNS if names.count(name) != 1]:
            raise ConfigError(
                f"{sheet}: no column '{missing[0]}', or several; the sheet of variants needs {', '.join(_COLUMNS)}"
            )
        table = pa.csv.read_csv(
            sheet,
            pa.csv.ReadOptions(skip_rows=1, column_names=names),
            pa.csv.ParseOptions(delimiter=delimiter),
            pa.csv.ConvertOptions(include_columns=_COLUMNS, column_types=dict.fromkeys(_COLUMNS, pa.string())),
        )
    except (OSError, UnicodeDecodeError, pa.ArrowInvalid) as error:
        reason = str(error).partition("\n")[0]
        raise passing(error, sheet) or ConfigError(
            f"{sheet}: variants cannot be read ({reason}); correct 'variants' in the config"
        ) from error
    table = pa.table({name: pc.utf8_trim_whitespace(table[name]) for name in _COLUMNS})
    unknown = table.filter(pc.invert(pc.is_in(table["sample"], pa.array(list(samples), pa.string()))))
    if len(unknown):
        raise ConfigError(
            f"{sheet}: there is no sample {unknown['sample'][0].as_py()!r}; use the names of the sample sheet"
        )
    return table


def write_mutants(lines: pa.Table, catalog: Path, sequences: Path, target: Path) -> None:
    """Set a sample's lines (`id`, `mutant`) against its records, and write a row for each, in the order of the lines.

    An ID that several records bear has a row for each of them, in their order. Status is `valid`, or `skipped` with a
    reason: no such ID, a record that was skipped, a text that is no substitution, another residue there. Of a sample
    that was refused the file tells why.
    """
    rows = refused = 0
    schema = MUTANTS
    if line := refusal(catalog):
        lines, schema = lines.slice(0, 0), with_refusal(MUTANTS, line)
    with database.connect(target) as connection, files.atomic(target) as temporary:
        numbered = lines.append_column("line", pa.array(range(len(lines)), pa.int64()))
        connection.register("lines", numbered)
        matched = connection.sql(
            "SELECT l.id AS id, l.mutant AS mutant, c.key AS key, coalesce(c.length, 0) AS length, "
            "CASE WHEN c.id IS NULL THEN 'no such ID' WHEN c.status <> 'valid' THEN 'record skipped: ' || c.reason "
            "END AS reason FROM lines l "
            "LEFT JOIN read_parquet($1, hive_partitioning = false) c ON l.id = c.id ORDER BY l.line, c.index",
            params=[database.literal(catalog)],
        )
        residues = residues_of(sequences, set(matched.select("key").distinct().to_arrow_table()["key"].to_pylist()))
        with closing(TableWriter(temporary, schema)) as table:
            for batch in matched.to_arrow_reader(_ROWS):
                for row in batch.to_pylist():
                    reason, substitutions = _matched(row, residues)
                    positions = [substitution.position - 1 for substitution in substitutions]
                    letters = [AMINO_ACIDS.index(substitution.letter) for substitution in substitutions]
                    # Without a key, nothing is computed for a line that is refused.
                    key, status = (None, "skipped") if reason else (row["key"], "valid")
                    about = (row["id"], row["mutant"], row["length"], key, status, reason)
                    table.add((rows, *about, positions, letters))
                    rows += 1
                    refused += reason is not None
                table.flush()
            table.flush()
    log.info("%s variants: %s refused", f"{rows:,}", f"{refused:,}")


@lru_cache(maxsize=1 << 16)
def _parsed(mutant: str) -> tuple[str | None, list[Substitution]]:
    try:
        return None, parse(mutant)
    except ValueError as error:
        return str(error), []


def _matched(row: Mapping[str, Any], residues: Mapping[bytes, bytes]) -> tuple[str | None, list[Substitution]]:
    """Why a line cannot be scored, or its substitutions. residues: of each key."""
    if row["reason"]:
        return row["reason"], []
    reason, substitutions = _parsed(row["mutant"])
    reason = reason or misfit(substitutions, residues[row["key"]])
    return reason, [] if reason else substitutions

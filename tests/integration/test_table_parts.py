"""A table larger than the configured size is a directory of Parquet files that reads as the single file does."""

import json
import math
import resource
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest
import tiny_run as tiny
from in_process import call
from workflow import LAYERS, MODEL, Baseline, Workspace, error_line, matrix, script, written_times

EMBED_DIM = 320
NAME = f"layer{LAYERS}.mean"
FILE_TOO_LARGE = "the file-size limit is reached; raise it (ulimit -f) and run again"
COLUMNS = ["id", "length", "embedding"]


def features_arguments(target: str) -> list[str]:
    """What the workflow passes to features.py."""
    fields = {"long_sequences": "truncate", "max_length": 120, "window_overlap": 0, "precision": "auto"}
    spec = json.dumps({"layers": [6], "representations": ["mean"], **fields})
    arguments = ["--catalog", "results/catalog/a.parquet", "--model", MODEL, "--spec", spec]
    arguments += ["--descriptor", f"results/models/{MODEL}.json", "--store", "store"]
    return [*arguments, "--table", target]


def test_a_large_table_is_written_in_parts_and_a_small_one_is_left_alone(tiny_run: Workspace, work: Workspace) -> None:
    again = tiny_run.copy(work.root / "again")
    vector = len(tiny_run.table("a", "one", tiny.TABLE)["embedding"][0]) * 4
    largest = (len(tiny.SAMPLES["a"]) - 1) * vector
    assert len(tiny.SAMPLES["b"]) * vector <= largest
    kept = written_times(again.store_files() + again.files("results/receipts") + again.files("results/features/b"))

    def limit(config: dict[str, Any]) -> None:
        config["tables"] = {"part_mb": (largest + 1) / 1e6}

    again.change_config(limit)
    again.run()
    assert written_times(kept) == kept
    directory = again.root / "results/features/a/one"
    assert [path.name for path in directory.iterdir()] == [f"{tiny.TABLE}.parts"]
    parts = sorted((directory / f"{tiny.TABLE}.parts").glob("[!.]*"))
    assert [part.name for part in parts] == ["part-00000.parquet", "part-00001.parquet"]
    assert_same_table(directory / f"{tiny.TABLE}.parts", tiny_run.table("a", "one", tiny.TABLE))
    result = again.run()
    assert "Nothing to be done" in result.stdout + result.stderr

    again.run(config=baseline_config(again))
    assert not list(directory.glob("*.parts"))
    assert again.table("a", "one", tiny.TABLE).equals(tiny_run.table("a", "one", tiny.TABLE))
    assert written_times(kept) == kept


def baseline_config(work: Workspace) -> str:
    work.change_config(lambda config: config.pop("tables"), "as_before.yaml")
    return "as_before.yaml"


def assert_same_table(parts: Path, expected: pd.DataFrame) -> None:
    """Whatever reads the directory gets the cells of the single file."""
    by_duckdb = duckdb.sql(f"SELECT id, length, embedding FROM read_parquet('{parts}/*.parquet')").fetchall()
    found = {
        "pandas": pd.read_parquet(parts),
        "polars": pl.read_parquet(parts).to_pandas(),
        "pyarrow": pq.read_table(parts).to_pandas(),
        "duckdb": pd.DataFrame(by_duckdb, columns=COLUMNS),
    }
    for reader, table in found.items():
        assert list(table.columns) == COLUMNS, reader
        assert table["id"].to_list() == expected["id"].to_list(), reader
        assert table["length"].to_list() == expected["length"].to_list(), reader
        assert np.array_equal(matrix(table), matrix(expected)), reader


@pytest.mark.parametrize("rows", [1, 23, 1000])
def test_parts_have_the_rows_asked_for_and_the_metadata_of_the_table(
    baseline: Baseline, again: Workspace, rows: int
) -> None:
    assert call("features", *features_arguments("single.parquet"), cwd=again.root).returncode == 0
    size = (rows + 0.5) * EMBED_DIM * 4 / 1e6
    result = call("features", *features_arguments("parts"), "--part-mb", str(size), cwd=again.root)
    assert result.returncode == 0, result.stderr
    parts = sorted((again.root / "parts").iterdir())
    embedded = len(baseline.embedded("a"))
    counts = [pq.read_metadata(part).num_rows for part in parts]
    assert counts == [min(rows, embedded - rows * number) for number in range(math.ceil(embedded / rows))]
    assert_same_table(again.root / "parts", baseline.work.table("a", MODEL, NAME))
    for part in parts:
        assert pq.read_schema(part).equals(pq.read_schema(again.root / "single.parquet"), check_metadata=True)


def test_parts_that_cannot_be_complete_are_not_written(again: Workspace) -> None:
    again.store_files()[0].unlink()
    result = call("features", *features_arguments("parts"), "--part-mb", "0.01", cwd=again.root)
    assert result.returncode == 75
    assert not (again.root / "parts").exists()


@pytest.mark.parametrize("options", [[], ["--part-mb", "0.05"]], ids=["one file", "parts"])
def test_a_table_that_does_not_fit_is_not_left_behind(again: Workspace, options: list[str]) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    result = script("features", *features_arguments("out/table"), *options, cwd=again.root, preexec_fn=limit)
    assert result.returncode == 73
    assert error_line(result).endswith("error: out/table: cannot be written: " + FILE_TOO_LARGE)
    assert not list((again.root / "out").iterdir())

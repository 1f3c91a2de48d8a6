"""A changed config computes what is missing and nothing else."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from workflow import (
    LAYERS,
    MAX_LENGTH,
    MODEL,
    Baseline,
    Vectors,
    Workspace,
    error_line,
    matrix,
    plain,
    relative_error,
    script,
    worst_error,
    written_times,
)

TOLERANCE = 1e-5
NAMES = [f"layer{layer}.{representation}" for layer in (0, LAYERS) for representation in ("mean", "std")]
SOME = [("a", f"layer{LAYERS}.std"), ("b", f"layer{LAYERS}.mean")]


def assert_same_tables(found: Workspace, expected: Workspace) -> None:
    """The tables of both samples of the shared run, cell by cell."""
    for sample in ("a", "b"):
        for name in NAMES:
            ours, theirs = (work.table(sample, MODEL, name) for work in (found, expected))
            assert ours[["id", "length"]].equals(theirs[["id", "length"]])
            assert np.array_equal(matrix(ours), matrix(theirs))


def keys_of(paths: list[Path]) -> list[bytes]:
    return [key for path in paths for key in pq.read_table(path, columns=["key"])["key"].to_pylist()]


def test_a_sample_added_embeds_only_its_new_sequences(
    baseline: Baseline, again: Workspace, fair_esm: Callable[[str], Vectors]
) -> None:
    old_receipts = set(again.receipts())
    old = written_times(again.table_files() + again.files("results/catalog") + again.store_files())
    new = [*baseline.new[:5], (baseline.new[5] + baseline.new[6])[: MAX_LENGTH + 40]]
    known = [entry.residues for entry in baseline.entries["a"][-8:] if entry.residues]
    assert known
    assert not set(new) & baseline.unique()
    proteins = [new[0], *known, *new, known[0]]
    entries = [plain(f"c{number}", protein) for number, protein in enumerate(proteins)]
    again.write_samples([("a", "a.fasta"), ("b", "b.fasta"), ("c", again.write_fasta("c.fasta", entries))])
    again.run()
    receipts = [receipt for job, receipt in again.receipts().items() if job not in old_receipts]
    assert sum(receipt["sequences_computed"] for receipt in receipts) == len(new)
    assert written_times(old) == old
    table = again.table("c", MODEL, f"layer{LAYERS}.std")
    assert table["id"].to_list() == [entry.id for entry in entries]
    seen = [protein[:MAX_LENGTH] for protein in proteins]
    assert worst_error(table, seen, fair_esm, LAYERS, "std") <= TOLERANCE


def test_a_layer_added_computes_only_that_layer(
    baseline: Baseline, again: Workspace, fair_esm: Callable[[str], Vectors]
) -> None:
    old = written_times(again.table_files() + again.store_files())

    def add_layer(config: dict[str, Any]) -> None:
        config["models"][MODEL]["layers"] = [0, 3, -1]

    again.change_config(add_layer)
    again.run()
    assert written_times(old) == old
    new_files = [path for path in again.store_files() if path not in old]
    columns = {name for path in new_files for name in pq.read_schema(path).names if name.startswith("layer")}
    assert columns == {"layer3.mean", "layer3.std"}
    assert len(keys_of(new_files)) == len(baseline.unique())
    for sample in ("a", "b"):
        for representation in ("mean", "std"):
            table = again.table(sample, MODEL, f"layer3.{representation}")
            assert worst_error(table, baseline.seen(sample), fair_esm, 3, representation) <= TOLERANCE


def test_three_worker_jobs_give_the_vectors_of_one(baseline: Baseline, tmp_path: Path) -> None:
    three = baseline.work.copy(tmp_path / "three", inputs_only=True)

    def divide_otherwise(config: dict[str, Any]) -> None:
        config["workers"]["max_jobs"] = 3
        config["workers"]["tokens_per_pack"] = 300
        config["sharding"]["target_minutes"] *= 3

    three.change_config(divide_otherwise)
    three.run("--", *(f"results/features/{sample}/{MODEL}/{name}.parquet" for sample, name in SOME))
    one_job, three_jobs = baseline.work.receipts(), three.receipts()
    assert (len(one_job), len(three_jobs)) == (1, 3)
    assert len(three.store_files()) >= 6
    assert sum(receipt["sequences_computed"] for receipt in three_jobs.values()) == len(baseline.unique())
    assert len(three.table_files()) == len(SOME)
    for sample, name in SOME:
        ours, theirs = (work.table(sample, MODEL, name) for work in (three, baseline.work))
        assert ours["id"].equals(theirs["id"])
        errors = [relative_error(*pair) for pair in zip(matrix(ours), matrix(theirs), strict=True)]
        assert max(errors) <= TOLERANCE


@pytest.mark.parametrize(("section", "key", "value"), [("workers", "tokens_per_pack", 500), ("workers", "max_jobs", 5)])
def test_what_decides_only_speed_reruns_nothing(again: Workspace, section: str, key: str, value: int) -> None:
    before = written_times(again.files("results") + again.files("store"))

    def change(config: dict[str, Any]) -> None:
        assert config[section].get(key) != value
        config[section][key] = value

    again.change_config(change)
    result = again.run()
    assert "Nothing to be done" in result.stdout + result.stderr
    assert written_times(again.files("results") + again.files("store")) == before


def test_what_decides_numbers_does_rerun(again: Workspace) -> None:
    def change(config: dict[str, Any]) -> None:
        config["models"][MODEL]["max_length"] = MAX_LENGTH - 1

    again.change_config(change)
    result = again.run("--dry-run")
    assert "Nothing to be done" not in result.stdout + result.stderr
    assert "checkpoint plan:" in result.stdout + result.stderr


def test_deleted_tables_are_made_again_without_embedding(baseline: Baseline, again: Workspace) -> None:
    kept = written_times(again.files("store") + again.files("results/receipts"))
    shutil.rmtree(again.root / "results/features")
    (again.root / "results/status/a.tsv").unlink()
    again.run()
    assert written_times(again.files("store") + again.files("results/receipts")) == kept
    assert_same_tables(again, baseline.work)
    assert again.status("a").equals(baseline.work.status("a"))


def features_arguments(target: str) -> list[str]:
    """What the workflow passes to features.py."""
    fields = {"long_sequences": "truncate", "max_length": 120, "window_overlap": 0, "precision": "auto"}
    spec = json.dumps({"layers": [6], "representations": ["mean"], **fields})
    arguments = ["--catalog", "results/catalog/a.parquet", "--model", MODEL, "--spec", spec]
    arguments += ["--descriptor", f"results/models/{MODEL}.json", "--store", "store"]
    return [*arguments, "--table", target]


def test_a_lost_store_file_is_told_of_and_mended_by_planning_again(baseline: Baseline, again: Workspace) -> None:
    held = {path: set(keys_of([path])) for path in again.store_files()}
    in_a = {key for key in pq.read_table(again.root / "results/catalog/a.parquet")["key"].to_pylist() if key}
    lost = next(path for path, keys in held.items() if keys & in_a)
    lost.unlink()
    kept = written_times(again.store_files())
    old_receipts = set(again.receipts())
    target = f"results/features/a/{MODEL}/layer{LAYERS}.mean.parquet"
    (again.root / target).unlink()

    result = script("features", *features_arguments(target), cwd=again.root)
    assert result.returncode == 75
    line = error_line(result)
    assert "results/catalog/a.parquet" in line
    assert "--forcerun plan" in line
    assert not (again.root / target).exists()
    through_snakemake = again.run(check=False)
    assert through_snakemake.returncode == 1
    assert line.partition("error: ")[2] in through_snakemake.stderr

    again.run("--forcerun", "plan")
    new = [receipt for job, receipt in again.receipts().items() if job not in old_receipts]
    assert sum(receipt["sequences_computed"] for receipt in new) == len(held[lost])
    assert set(keys_of([path for path in again.store_files() if path not in kept])) == held[lost]
    assert written_times(kept) == kept
    assert_same_tables(again, baseline.work)


def test_after_verify_put_a_damaged_file_aside_a_plain_run_computes_exactly_what_it_held(
    baseline: Baseline, again: Workspace
) -> None:
    lost = again.store_files()[0]
    keys = set(keys_of([lost]))
    content = bytearray(lost.read_bytes())
    content[len(content) // 2] ^= 4
    lost.write_bytes(content)
    others = written_times(again.store_files()[1:])
    result = script("store", "verify", "store", cwd=again.root)
    assert result.returncode == 65
    assert f"computes {len(keys)} sequences" in error_line(result)
    assert not lost.exists()
    old_receipts = set(again.receipts())
    again.run()
    new = [receipt for job, receipt in again.receipts().items() if job not in old_receipts]
    assert sum(receipt["sequences_computed"] for receipt in new) == len(keys)
    assert written_times(others) == others
    assert script("store", "verify", "store", cwd=again.root).returncode == 0
    assert_same_tables(again, baseline.work)
    result = again.run()
    assert "Nothing to be done" in result.stdout + result.stderr


def test_a_store_lost_as_a_whole_is_mended_by_planning_again(baseline: Baseline, again: Workspace) -> None:
    shutil.rmtree(again.root / "store")
    target = f"results/features/a/{MODEL}/layer{LAYERS}.mean.parquet"
    (again.root / target).unlink()
    assert again.run(check=False).returncode == 1
    again.run("--forcerun", "plan", "--", target)
    assert len(keys_of(again.store_files())) == len(baseline.unique())
    assert_same_tables(again, baseline.work)

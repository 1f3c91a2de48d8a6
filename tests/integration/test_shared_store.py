"""Two workflows that work on one store at the same time."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from esmflow.sealed import open_file
from workflow import DEADLINE, LAYERS, MAX_LENGTH, MODEL, Baseline, Vectors, Workspace, matrix, plain, worst_error


def wait(process: subprocess.Popen[bytes], work: Workspace) -> None:
    try:
        assert process.wait(DEADLINE) == 0, (work.root / "snakemake.out").read_text()
    finally:
        process.kill()


def test_two_workflows_started_at_once_on_one_store_are_both_right(
    baseline: Baseline, fair_esm: Callable[[str], Vectors], tmp_path: Path
) -> None:
    """The second has a sample of the first, cut into other shards, and one with proteins of both and its own."""
    store = str(tmp_path / "shared")
    first = baseline.work.copy(tmp_path / "first", inputs_only=True)
    second = baseline.work.copy(tmp_path / "second", inputs_only=True)
    proteins = [*baseline.new[:4], *(entry.residues for entry in baseline.embedded("a")[:30])]
    entries = [plain(f"c{number}", protein) for number, protein in enumerate(proteins)]
    second.write_samples([("c", second.write_fasta("c.fasta", entries)), ("b", "b.fasta")])

    def share(config: dict[str, Any]) -> None:
        config["store"] = store

    def share_and_divide_otherwise(config: dict[str, Any]) -> None:
        share(config)
        config["sharding"]["target_minutes"] *= 1.7

    first.change_config(share)
    second.change_config(share_and_divide_otherwise)
    running = [(work.start(), work) for work in (first, second)]
    for process, work in running:
        wait(process, work)

    for work, samples in ((first, "ab"), (second, "b")):
        for sample in samples:
            for name in (f"layer{layer}.{kind}" for layer in (0, LAYERS) for kind in ("mean", "std")):
                found, expected = (one.table(sample, MODEL, name) for one in (work, baseline.work))
                assert found[["id", "length"]].equals(expected[["id", "length"]])
                np.testing.assert_allclose(matrix(found), matrix(expected), rtol=1e-5, atol=1e-6)
            assert work.status(sample).equals(baseline.work.status(sample))
    table = second.table("c", MODEL, f"layer{LAYERS}.std")
    assert table["id"].to_list() == [entry.id for entry in entries]
    assert worst_error(table, [protein[:MAX_LENGTH] for protein in proteins], fair_esm, LAYERS, "std") <= 1e-5

    committed = first.store_files(store)
    for path in committed:
        with open_file(path) as file:
            file.read()
    keys = {key for path in committed for key in pq.read_table(path, columns=["key"])["key"].to_pylist()}
    assert len(keys) == len(baseline.unique() | set(proteins))
    assert [path for path in Path(store).rglob(".*") if path.is_file()] == []
    for work in (first, second):
        result = work.run()
        assert "Nothing to be done" in result.stdout + result.stderr

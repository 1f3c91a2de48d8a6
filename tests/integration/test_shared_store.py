"""Two workflows that work on one store at the same time."""

import subprocess
from pathlib import Path

import pyarrow.parquet as pq
from esmflow.sealed import open_file
from random_residues import residues
from tiny_run import assert_right
from workflow import DEADLINE, Workspace, plain


def wait(process: subprocess.Popen[bytes], work: Workspace) -> None:
    try:
        assert process.wait(DEADLINE) == 0, (work.root / "snakemake.out").read_text()
    finally:
        process.kill()


def test_two_workflows_started_at_once_on_one_store_are_both_right(tiny_run: Workspace, tmp_path: Path) -> None:
    """The second has a sample of the first, cut into other shards, and one with proteins of both and its own."""
    proteins = [plain(f"q{number}", residues(10 + number, number)) for number in range(60)]
    samples = {"a": proteins[:35], "b": proteins[20:50], "c": [*proteins[:10], *proteins[45:]]}
    store = tmp_path / "shared"
    store.mkdir()
    first, second = (tiny_run.copy_inputs(tmp_path / name) for name in ("first", "second"))
    for work, names in ((first, "ab"), (second, "cb")):
        work.write_samples([(name, work.write_fasta(f"{name}.fasta", samples[name])) for name in names])
        (work.root / "store").symlink_to(store)
    second.change_config(lambda config: config.update(sharding={"target_minutes": 1.7e-6}))
    running = [(work.start(), work) for work in (first, second)]
    for process, work in running:
        wait(process, work)

    assert_right(first)
    assert_right(second)
    committed = first.store_files()
    for path in committed:
        with open_file(path) as file:
            file.read()
    keys = {key for path in committed for key in pq.read_table(path, columns=["key"])["key"].to_pylist()}
    assert len(keys) == len(proteins)
    assert [path for path in store.rglob(".*") if path.is_file()] == []
    for work in (first, second):
        result = work.run()
        assert "Nothing to be done" in result.stdout + result.stderr

"""Runs that go on after their files were lost, damaged or misdated: what was lost is computed again, and no more."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tiny_run import PROTEINS, SAMPLES, UNIQUE, assert_right, computed, receipts, tables
from workflow import Workspace, error_line, plain, script, written_times

IN_YEARS = 4e9


@pytest.fixture
def work(tiny_run: Workspace, tmp_path: Path) -> Workspace:
    """A copy of a finished run."""
    return tiny_run.copy(tmp_path / "work")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def flip_bit(path: Path) -> None:
    """In a vector."""
    row_group = pq.read_metadata(path).row_group(0)
    columns = [row_group.column(number) for number in range(row_group.num_columns)]
    [vectors] = [column for column in columns if column.path_in_schema.startswith("layer")]
    content = bytearray(path.read_bytes())
    content[vectors.data_page_offset + vectors.total_compressed_size - 3] ^= 4
    path.write_bytes(content)


def keys_of(path: Path) -> list[bytes]:
    return list(pq.read_table(path, columns=["key"])["key"].to_pylist())


def damage(work: Workspace, *ways: Callable[[Path], None]) -> tuple[int, dict[Path, tuple[int, int]]]:
    """Damage store files that sample a needs: how many sequences they held, and what tells that the others stay."""
    in_a = set(keys_of(work.root / "results/catalog/a.parquet"))
    needed = [path for path in work.store_files() if in_a & set(keys_of(path))]
    lost = needed[: len(ways)]
    sequences = sum(len(keys_of(path)) for path in lost)
    for way, path in zip(ways, lost, strict=True):
        way(path)
    return sequences, written_times(path for path in work.store_files() if path not in lost)


def test_store_files_lost_or_damaged_are_told_of_and_computed_again_by_planning_again(work: Workspace) -> None:
    """One that sample a needs is lost, and one damaged that the model needs for b alone."""
    samples = [set(keys_of(work.root / f"results/catalog/{sample}.parquet")) for sample in "ab"]
    needing = {path: [not keys.isdisjoint(keys_of(path)) for keys in samples] for path in work.store_files()}
    lost, damaged = (next(path for path in needing if needing[path] == by) for by in ([True, False], [False, True]))
    sequences = len(keys_of(lost)) + len(keys_of(damaged))
    lost.unlink()
    flip_bit(damaged)
    kept = written_times(needing.keys() - {lost, damaged})
    shutil.rmtree(work.root / "results/features")
    earlier = receipts(work)
    failed = work.run("--keep-going", check=False)
    assert failed.returncode == 1
    told = re.findall(r"error: .*run again with --forcerun plan", failed.stderr)
    assert len(told) == 2, failed.stderr
    assert tables(work) == {}

    work.run("--forcerun", "plan")
    assert computed(work, earlier) == sequences
    assert written_times(kept) == kept
    assert_right(work)


def test_a_half_done_run_with_damaged_store_files_computes_them_again(work: Workspace) -> None:
    """Half done: the shards are there, and neither receipts nor tables."""
    lost, kept = damage(work, empty, cut_short, flip_bit)
    for part in ("features", "status", "receipts"):
        shutil.rmtree(work.root / "results" / part)
    work.run()
    [receipt] = work.receipts().values()
    assert sum(shard["sequences"] for shard in receipt["shards"] if shard["computed"]) == lost
    assert receipt["sequences_computed"] == lost
    assert written_times(kept) == kept
    assert_right(work)


def test_receipts_without_their_shards_are_told_of_and_mended_by_planning_again_for_two_worker_jobs(
    work: Workspace,
) -> None:
    shutil.rmtree(work.root / "store")
    shutil.rmtree(work.root / "results/features")
    failed = work.run(check=False)
    assert failed.returncode == 1
    assert re.search(r"error: .*run again with --forcerun plan", failed.stderr)
    assert tables(work) == {}
    earlier = receipts(work)
    work.change_config(lambda config: config["workers"].update(max_jobs=2, tokens_per_pack=100))
    work.run("--forcerun", "plan")
    assert len(receipts(work).keys() - earlier.keys()) == 2
    assert computed(work, earlier) == UNIQUE
    assert_right(work)


def test_a_clock_set_back_is_told_of_and_mended_by_touching_what_is_from_the_future(work: Workspace) -> None:
    """All outputs are from the future when a FASTA is edited."""
    for path in work.root.glob("results/**/*"):
        os.utime(path, (IN_YEARS, IN_YEARS))
    work.write_fasta("a.fasta", [plain("new", "MKV" + PROTEINS[0].residues), *SAMPLES["a"][1:]])
    earlier = receipts(work)
    failed = work.run(check=False)
    assert failed.returncode == 1
    assert "clock" in failed.stderr
    assert computed(work, earlier) == 0

    for path in work.root.glob("results/**/*"):
        os.utime(path)
    earlier = receipts(work)
    work.run()
    assert computed(work, earlier) == 1
    assert_right(work)


def test_after_verify_put_a_damaged_file_aside_a_plain_run_computes_exactly_what_it_held(work: Workspace) -> None:
    files = set(work.store_files())
    lost, kept = damage(work, flip_bit)
    result = script("store", "verify", "store", cwd=work.root)
    assert result.returncode == 65
    assert f"computes {lost} sequences" in error_line(result)
    [aside] = files - set(work.store_files())
    assert aside not in kept
    earlier = receipts(work)
    work.run()
    assert computed(work, earlier) == lost
    assert written_times(kept) == kept
    assert script("store", "verify", "store", cwd=work.root).returncode == 0
    assert_right(work)


def test_planning_again_with_nothing_missing_writes_no_table(work: Workspace) -> None:
    before = tables(work)
    work.run("--forcerun", "plan")
    assert tables(work) == before

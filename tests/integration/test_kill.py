"""kill -9 at many moments, and the same command again: what was committed stays, what comes out is the same."""

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from subprocess import STDOUT, Popen

import numpy as np
import pandas as pd
import psutil
import pytest
from workflow import (
    DEADLINE,
    ENVIRONMENT,
    FULL_SIZE,
    MODEL,
    ROOT,
    Baseline,
    Workspace,
    find_worker,
    matrix,
    wait_until,
    written_times,
)

KILLS = 15 if FULL_SIZE else 5
AMID_A_COMMIT = (2, 5)
#: All sequences have to be embedded for these two tables, but few other jobs have to run.
TARGETS = [f"results/features/a/{MODEL}/layer6.mean.parquet", f"results/features/b/{MODEL}/layer0.std.parquet"]


@contextmanager
def running(work: Workspace, *arguments: str) -> Iterator[Popen[bytes]]:
    """Snakemake at work; nothing of it is left at the end."""
    process = work.start(*arguments)
    try:
        yield process
    finally:
        kill_all(process)


@contextmanager
def embedding(work: Workspace) -> Iterator[tuple[Popen[bytes], psutil.Process]]:
    """The worker of the plan's one job at work, started by hand, which is faster than by Snakemake."""
    [job] = (work.root / "results/plan/jobs").iterdir()
    places = ["--job", job, "--store", "store", "--heartbeats", "results/heartbeats"]
    outputs = ["--receipt", f"results/receipts/{job.name}", "--threads", "2"]
    with (work.root / "worker.out").open("wb") as out:
        command = [sys.executable, ROOT / "scripts/embed.py", *places, *outputs]
        process = Popen(command, cwd=work.root, stdout=out, stderr=STDOUT, env=ENVIRONMENT)
    try:
        yield process, psutil.Process(process.pid)
    finally:
        kill_all(process)


def kill_all(process: Popen[bytes]) -> None:
    """kill -9 of a process that was started here and of all its descendants."""
    try:
        family = [psutil.Process(process.pid)]
        family += family[0].children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait(DEADLINE)
    psutil.wait_procs(family, DEADLINE)


def commits_awaited(number: int) -> int:
    return 0 if number in AMID_A_COMMIT else number % 3


def moment(number: int, work: Workspace, worker: psutil.Process) -> Callable[[], bool]:
    """The moment of a kill: as the worker starts, amid a commit, or after some shards and some more computing."""
    draw = random.Random(number)
    before = len(work.store_files())
    more_seconds = draw.uniform(0, 0.4 if commits_awaited(number) else 1.5)
    reached: list[float] = []

    def computed() -> float:
        times = [process.cpu_times() for process in [worker, *worker.children()]]
        return float(sum(own.user + own.system for own in times))

    def come() -> bool:
        if number == 0:
            return True
        done = len(work.store_files()) - before
        if number in AMID_A_COMMIT:
            return done > 3 or any((work.root / "store").rglob(".*.tmp"))
        if not reached and done >= commits_awaited(number):
            reached.append(computed())
        return bool(reached) and computed() - reached[0] >= more_seconds

    def come_or_gone() -> bool:
        try:
            return come()
        except psutil.NoSuchProcess:
            return True

    return come_or_gone


def assert_equal_tables(found: Workspace, expected: Workspace, paths: list[str]) -> None:
    assert [str(path.relative_to(found.root)) for path in found.table_files()] == paths
    for path in paths:
        ours, theirs = (pd.read_parquet(work.root / path) for work in (found, expected))
        assert ours[["id", "length"]].equals(theirs[["id", "length"]])
        np.testing.assert_allclose(matrix(ours), matrix(theirs), rtol=1e-6, atol=1e-6)


def temporary_files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob(".*") if path.name != ".snakemake_timestamp"]


@pytest.fixture
def fresh(baseline: Baseline, tmp_path: Path) -> Workspace:
    """The shared run's inputs, nothing done yet."""
    return baseline.work.copy(tmp_path / "fresh", inputs_only=True)


def test_a_worker_killed_at_many_moments_loses_no_committed_shard_and_changes_no_cell(
    baseline: Baseline, fresh: Workspace
) -> None:
    fresh.change_config(lambda config: config.update(sharding={"target_minutes": 0.0004}))
    fresh.run("--", "results/plan")
    first_seen: dict[Path, tuple[int, int]] = {}
    interrupted = 0
    for number in range(KILLS):
        with embedding(fresh) as (process, worker):
            wait_until(moment(number, fresh, worker), process)
            interrupted += process.poll() is None
            process.kill()
            assert process.wait(DEADLINE) != 0, f"kill {number} came after the worker's end"
        assert fresh.receipts() == {}
        assert fresh.table_files() == []
        for path, times in written_times(fresh.store_files()).items():
            first_seen.setdefault(path, times)
        assert written_times(first_seen) == first_seen
        if number == 3:
            leave_temporary_files(fresh, fresh.store_files())
    assert interrupted >= KILLS - 2
    assert len(first_seen) >= sum(map(commits_awaited, range(KILLS))) > 0

    fresh.run()
    assert written_times(first_seen) == first_seen
    [receipt] = fresh.receipts().values()
    assert receipt["sequences"] == len(baseline.unique())
    assert sum(shard["computed"] for shard in receipt["shards"]) > 0
    assert sum(not shard["computed"] for shard in receipt["shards"]) == len(first_seen)
    every_table = [str(path.relative_to(baseline.work.root)) for path in baseline.work.table_files()]
    assert_equal_tables(fresh, baseline.work, every_table)
    for sample in ("a", "b"):
        assert fresh.status(sample).equals(baseline.work.status(sample))
    assert temporary_files(fresh.root / "results") == []


def leave_temporary_files(work: Workspace, committed: list[Path]) -> None:
    """What a killed worker may leave: half of a file. Whoever reads it as a store file fails."""
    assert committed
    for path in committed:
        half = path.with_name(f".{path.name}.local-1.tmp")
        half.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert any((work.root / "store").rglob(".*.tmp"))


def test_a_killed_snakemake_goes_on_after_unlock_and_rerun_incomplete(baseline: Baseline, fresh: Workspace) -> None:
    with running(fresh, "--", *TARGETS) as snakemake:
        assert find_worker(snakemake) is not None
        wait_until(lambda: len(fresh.store_files()) >= 3, snakemake)
        assert snakemake.poll() is None, (fresh.root / "snakemake.out").read_text()
        kill_all(snakemake)
    committed = written_times(fresh.store_files())
    assert 3 <= len(committed) < len(baseline.work.store_files())
    assert fresh.receipts() == {}

    locked = fresh.run("--", *TARGETS, check=False)
    assert locked.returncode != 0
    assert "unlock" in (locked.stdout + locked.stderr).lower()
    fresh.run("--unlock")
    fresh.run("--rerun-incomplete", "--", *TARGETS)
    assert written_times(committed) == committed
    assert_equal_tables(fresh, baseline.work, TARGETS)
    assert temporary_files(fresh.root / "results") == []


def test_a_snakemake_killed_at_many_moments_ends_with_every_cell_right(baseline: Baseline, fresh: Workspace) -> None:
    """From its first output to one of its last; each run finds what the one before left."""
    draw = random.Random(11)
    shards = sorted(draw.sample(range(1, len(baseline.work.store_files())), 4))
    moments = [
        ("results/catalog/*", 1),
        ("results/plan/jobs/*", 1),
        *(("store/embeddings/*/*/*", number) for number in shards),
        ("results/receipts/*", 1),
        *(("results/features/*/*/*", number) for number in sorted(draw.sample(range(1, 7), 2))),
        ("results/status/*", 1),
    ]
    moments = moments if FULL_SIZE else moments[::3]

    def come(pattern: str, number: int) -> bool:
        return sum(not path.name.startswith(".") for path in fresh.root.glob(pattern)) >= number

    killed = 0
    committed: dict[Path, tuple[int, int]] = {}
    for pattern, number in moments:
        with running(fresh, "--rerun-incomplete", "--nolock") as snakemake:
            wait_until(lambda pattern=pattern, number=number: come(pattern, number), snakemake)  # type: ignore[misc]
            killed += snakemake.poll() is None
        for path, times in written_times(fresh.store_files()).items():
            assert committed.setdefault(path, times) == times
    assert killed >= len(moments) - 1
    fresh.run("--rerun-incomplete", "--nolock")
    assert written_times(committed) == committed
    every_table = [str(path.relative_to(baseline.work.root)) for path in baseline.work.table_files()]
    assert_equal_tables(fresh, baseline.work, every_table)
    for sample in ("a", "b"):
        assert fresh.status(sample).equals(baseline.work.status(sample))
    assert temporary_files(fresh.root / "results") == []


def test_the_orphan_of_a_killed_snakemake_and_its_successor_do_the_same_work_unharmed(
    baseline: Baseline, fresh: Workspace
) -> None:
    with running(fresh, "--", *TARGETS) as snakemake:
        orphan = find_worker(snakemake)
        assert orphan is not None
        try:
            wait_until(lambda: len(fresh.store_files()) >= 1, snakemake)
            snakemake.kill()
            snakemake.wait(DEADLINE)
            assert orphan.is_running()
            fresh.run("--unlock")
            fresh.run("--rerun-incomplete", "--", *TARGETS)
        finally:
            psutil.wait_procs([orphan], DEADLINE)
    assert not orphan.is_running()
    assert_equal_tables(fresh, baseline.work, TARGETS)
    assert temporary_files(fresh.root / "results") == []
    assert temporary_files(fresh.root / "store") == []


def kill_features(work: Workspace) -> bool:
    """Make the first table anew and kill -9 its command amid the writing; whether that came before its end."""
    (work.root / TARGETS[0]).unlink(missing_ok=True)
    with running(work) as snakemake:
        worker = find_worker(snakemake, "features.py")
        assert worker is not None
        wait_until(lambda: bool(temporary_files(work.root / "results")), snakemake)
        with suppress(psutil.NoSuchProcess):
            worker.kill()
        return snakemake.wait(DEADLINE) != 0


def test_a_killed_features_command_leaves_nothing_behind_once_the_table_is_made(
    baseline: Baseline, again: Workspace
) -> None:
    assert any(kill_features(again) for _ in range(5))
    told = again.root / f"logs/features/a/{MODEL}/layer6.mean.log"
    assert "error: the command was ended from outside (code 137)" in told.read_text()
    assert not (again.root / TARGETS[0]).exists()
    again.run()
    assert_equal_tables(again, baseline.work, [str(path.relative_to(again.root)) for path in again.table_files()])
    assert temporary_files(again.root / "results") == []

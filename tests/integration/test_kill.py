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

KILLS = 15 if FULL_SIZE else 4
AMID_A_COMMIT = (2, 5)
SHARDS, FEATURES = "store/embeddings/*/*/*", "results/features/*/*/*"
#: Which files of a run there are, and how many, when its Snakemake is killed: while it computes, and after.
EARLY, LATE = [(SHARDS, 3)], [(FEATURES, 2)]
if FULL_SIZE:
    EARLY = [("results/catalog/*", 1), ("results/plan/jobs/*", 1), *((SHARDS, number) for number in (1, 3, 5, 7))]
    LATE = [("results/receipts/*", 1), (FEATURES, 1), *LATE, ("results/status/*", 1)]
#: What is made of `fresh`.
TABLES = [f"results/features/a/{MODEL}/layer6.{representation}.parquet" for representation in ("mean", "std")]


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


def assert_as_in_baseline(fresh: Workspace, baseline: Baseline) -> None:
    """All that is made of `fresh` is there, as without any kill."""
    assert_equal_tables(fresh, baseline.work, TABLES)
    assert fresh.status("a").equals(baseline.work.status("a"))
    assert temporary_files(fresh.root / "results") == []


def temporary_files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob(".*") if path.name != ".snakemake_timestamp"]


@pytest.fixture
def fresh(baseline: Baseline, tmp_path: Path) -> Workspace:
    """One sample of the shared run and one layer, in shards of a few sequences; nothing done yet."""
    work = baseline.work.copy_inputs(tmp_path / "fresh")
    work.write_samples([("a", "a.fasta")])
    work.change_config(lambda config: config.update(sharding={"target_minutes": 0.0004}))
    work.change_config(lambda config: config["models"][MODEL].update(layers=[-1]))
    return work


def test_a_worker_killed_at_many_moments_loses_no_committed_shard_and_changes_no_cell(
    baseline: Baseline, fresh: Workspace
) -> None:
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
    assert receipt["sequences"] == len({entry.residues for entry in baseline.embedded("a")})
    assert sum(shard["computed"] for shard in receipt["shards"]) > 0
    assert sum(not shard["computed"] for shard in receipt["shards"]) == len(first_seen)
    assert_as_in_baseline(fresh, baseline)


def leave_temporary_files(work: Workspace, committed: list[Path]) -> None:
    """What a killed worker may leave: half of a file. Whoever reads it as a store file fails."""
    assert committed
    for path in committed:
        half = path.with_name(f".{path.name}.local-1.tmp")
        half.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert any((work.root / "store").rglob(".*.tmp"))


def kill_at(work: Workspace, moment: tuple[str, int], *arguments: str) -> bool:
    """kill -9 of Snakemake and all that it started when there are so many such files; whether its end came later."""
    pattern, number = moment
    with running(work, "--rerun-incomplete", *arguments) as snakemake:
        wait_until(lambda: sum(not path.name.startswith(".") for path in work.root.glob(pattern)) >= number, snakemake)
        return snakemake.poll() is None


@contextmanager
def left_alone(work: Workspace) -> Iterator[None]:
    """The worker of a Snakemake that was killed alone amid the shards is at work, and ends by itself."""
    there = len(work.store_files())
    with running(work, "--rerun-incomplete", "--nolock") as snakemake:
        orphan = find_worker(snakemake)
        assert orphan is not None
        try:
            wait_until(lambda: len(work.store_files()) > there, snakemake)
            snakemake.kill()
            snakemake.wait(DEADLINE)
            assert orphan.is_running()
            yield
        finally:
            psutil.wait_procs([orphan], DEADLINE)
    assert not orphan.is_running()


def test_a_snakemake_killed_at_many_moments_with_its_worker_or_alone_ends_with_every_cell_right(
    baseline: Baseline, fresh: Workspace
) -> None:
    """Each run finds what the one before left, and one of them a worker that does the same work."""
    committed: dict[Path, tuple[int, int]] = {}
    for moment in EARLY:
        lock = [] if moment == EARLY[-1] else ["--nolock"]
        assert kill_at(fresh, moment, *lock), (fresh.root / "snakemake.out").read_text()
        for path, times in written_times(fresh.store_files()).items():
            assert committed.setdefault(path, times) == times
    locked = fresh.run(check=False)
    assert locked.returncode != 0
    assert "unlock" in (locked.stdout + locked.stderr).lower()
    fresh.run("--unlock")
    assert len(committed) >= 3
    assert fresh.receipts() == {}
    with left_alone(fresh):
        assert sum(kill_at(fresh, moment, "--nolock") for moment in LATE) >= max(len(LATE) - 1, 1)
        fresh.run("--rerun-incomplete", "--nolock")
    assert written_times(committed) == committed
    assert_as_in_baseline(fresh, baseline)
    assert temporary_files(fresh.root / "store") == []


def kill_features(work: Workspace) -> bool:
    """Make the first table anew and kill -9 its command amid the writing; whether that came before its end."""
    (work.root / TABLES[0]).unlink(missing_ok=True)
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
    assert not (again.root / TABLES[0]).exists()
    again.run()
    assert_equal_tables(again, baseline.work, [str(path.relative_to(again.root)) for path in again.table_files()])
    assert temporary_files(again.root / "results") == []

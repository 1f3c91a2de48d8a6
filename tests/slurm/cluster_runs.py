"""Runs on the test cluster: workers held amid their work, and what a run must have made in the end."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
from cluster import OnCluster
from workflow import Workspace, matrix, wait_until, written_times

Start = Callable[[Workspace], OnCluster]


def assert_complete(found: OnCluster, expected: Workspace) -> None:
    """All tables are those of the local run, and nothing is left in the queue."""
    paths = [path.relative_to(expected.root) for path in expected.table_files()]
    assert [path.relative_to(found.root) for path in found.table_files()] == paths
    for path in paths:
        ours, theirs = (pd.read_parquet(work.root / path) for work in (found, expected))
        assert ours[["id", "length"]].equals(theirs[["id", "length"]])
        np.testing.assert_allclose(matrix(ours), matrix(theirs), rtol=1e-6, atol=1e-6)
    assert found.cluster.queue() == []


def assert_computed_once(work: OnCluster, committed: dict[Path, tuple[int, int]]) -> None:
    """What had been committed is as it was, and the receipts say that it was not computed again."""
    assert written_times(committed) == committed
    again = {shard["name"] for receipt in work.receipts().values() for shard in receipt["shards"] if shard["computed"]}
    assert not again & {path.stem for path in committed}


def family(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


@contextmanager
def held(process: psutil.Process) -> Iterator[None]:
    """A command and all below it, stopped: as if the machine had become very slow."""
    members = family(process)
    for member in members:
        member.suspend()
    try:
        yield
    finally:
        for member in members:
            with suppress(psutil.NoSuchProcess):
                member.resume()


@contextmanager
def running(work: OnCluster, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Snakemake at work on the cluster; it and its jobs are gone at the end."""
    process = work.start(*arguments)
    try:
        yield process
    finally:
        for member in family(psutil.Process(process.pid)) if process.poll() is None else []:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        process.wait()
        for job in work.cluster.queue():
            work.cluster.run("scancel", job)
        wait_until(lambda: not work.cluster.queue())


@contextmanager
def held_amid_work(
    work: OnCluster, snakemake: subprocess.Popen[bytes], shards: int = 2
) -> Iterator[dict[str, ExitStack]]:
    """Both workers stopped, each once it has committed so many shards and has more to do; closing one lets it go on."""
    jobs = sorted(path.stem for path in (work.root / "results/plan/jobs").iterdir())
    assert len(jobs) == 2
    own = {job: set(work.shards(job)) for job in jobs}
    stopped: dict[str, ExitStack] = {}

    def both() -> bool:
        committed = {path.stem for path in work.store_files()}
        for job in own.keys() - stopped.keys():
            if len(own[job] & committed) >= shards:
                stopped[job] = ExitStack()
                stopped[job].enter_context(held(work.workers()[job]))
        return len(stopped) == len(own)

    try:
        wait_until(both, snakemake)
        assert snakemake.poll() is None, (work.root / "snakemake.out").read_text()
        committed = {path.stem for path in work.store_files()}
        assert all(names - committed for names in own.values())
        yield stopped
    finally:
        for stack in stopped.values():
            stack.close()


def ended(snakemake: subprocess.Popen[bytes], work: OnCluster) -> None:
    assert snakemake.wait() == 0, (work.root / "snakemake.out").read_text()

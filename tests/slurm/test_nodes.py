"""What befalls nodes, partitions and the controller: the run ends complete, and computes no committed shard again."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from cluster import SPARE, OnCluster
from cluster_runs import Start, assert_complete, assert_computed_once, ended, held_amid_work, running
from workflow import Workspace, wait_until, written_times


def states(work: OnCluster) -> list[str]:
    """The states of all SLURM jobs of a run."""
    return [job["JobState"] for jobs in work.jobs().values() for job in jobs]


def restarts(work: OnCluster) -> list[str]:
    return [job["Restarts"] for jobs in work.jobs().values() for job in jobs]


def run_urgent(work: OnCluster) -> None:
    """A job of the partition that preempts the others, on the whole node."""
    work.cluster.run("srun", "--partition=urgent", "--exclusive", "--mem=0", "true")


def kill_and_start_again(work: OnCluster) -> None:
    """The node dies, which the controller finds out, and is back."""
    work.cluster.kill_node(SPARE)
    wait_until(lambda: "DOWN" in work.cluster.node_state(SPARE))
    work.cluster.start_daemon("slurmd", "-N", SPARE, node=SPARE)


@pytest.mark.parametrize("befall", [run_urgent, kill_and_start_again], ids=["preempted by requeueing", "node died"])
def test_jobs_that_the_controller_requeues_go_on_by_themselves(
    start: Start, planned: Workspace, local: Workspace, befall: Callable[[OnCluster], None]
) -> None:
    work = replace(start(planned), partition="cheap")
    with running(work) as snakemake:
        with held_amid_work(work, snakemake):
            committed = written_times(work.store_files())
            befall(work)
        ended(snakemake, work)
    assert_complete(work, local)
    assert_computed_once(work, committed)
    assert (states(work), restarts(work)) == (["COMPLETED"] * 2, ["1"] * 2)


def test_after_preemption_by_cancelling_the_same_command_goes_on(
    start: Start, planned: Workspace, local: Workspace
) -> None:
    work = replace(start(planned), partition="scavenger")
    with running(work) as snakemake:
        with held_amid_work(work, snakemake):
            committed = written_times(work.store_files())
            run_urgent(work)
        assert states(work) == ["PREEMPTED"] * 2
        for process in psutil.Process(snakemake.pid).children():
            process.send_signal(signal.SIGINT)
        assert snakemake.wait() != 0
    work.run()
    assert_complete(work, local)
    assert_computed_once(work, committed)
    assert sorted(states(work)) == ["COMPLETED"] * 2 + ["PREEMPTED"] * 2


def test_a_drained_node_finishes_its_jobs_and_a_controller_that_restarts_knows_them_all(
    start: Start, planned: Workspace, local: Workspace
) -> None:
    work = replace(start(planned), partition="cheap")
    with running(work) as snakemake:
        with held_amid_work(work, snakemake):
            committed = written_times(work.store_files())
            work.cluster.run("scontrol", "update", f"NodeName={SPARE}", "State=DRAIN", "Reason=test")
            assert work.cluster.node_state(SPARE) == {"MIXED", "DRAIN"}
            work.cluster.kill_controller()
            work.cluster.start_daemon("slurmctld")
        ended(snakemake, work)
    assert_complete(work, local)
    assert written_times(committed) == committed
    assert (states(work), restarts(work)) == (["COMPLETED"] * 2, ["0"] * 2)
    assert all(job["JobName"].startswith("esmflow_") for [job] in work.jobs().values())
    assert work.cluster.node_state(SPARE) == {"IDLE", "DRAIN"}
    work.cluster.run("scontrol", "update", f"NodeName={SPARE}", "State=RESUME")


@contextmanager
def full(directory: Path, work: OnCluster) -> Iterator[None]:
    """A directory of the cluster on a file system that is full."""
    work.cluster.run("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", directory)
    work.cluster.run("sh", "-c", 'head -c 1M /dev/zero > "$0"/ballast || true', directory)
    try:
        yield
    finally:
        work.cluster.run("umount", directory)


def test_jobs_that_a_full_spool_directory_held_back_go_on_once_they_are_released(
    start: Start, planned: Workspace, local: Workspace
) -> None:
    work = replace(start(planned), partition="cheap")
    spool = work.cluster.root / f"spool-{SPARE}"
    with running(work) as snakemake:
        with full(spool, work):
            wait_until(lambda: work.cluster.node_state(SPARE) == {"IDLE", "DRAIN"}, snakemake)
        work.cluster.run("scontrol", "update", f"NodeName={SPARE}", "State=RESUME")
        work.cluster.run("scontrol", "release", *work.cluster.queue())
        ended(snakemake, work)
    assert_complete(work, local)
    assert states(work) == ["COMPLETED"] * 2

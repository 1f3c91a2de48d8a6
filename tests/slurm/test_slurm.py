"""The workflow on a real SLURM: the same tables, two GPUs for three jobs, and what befalls jobs on a cluster."""

import itertools
import json
import re
import subprocess
from dataclasses import replace
from datetime import datetime, timedelta

import psutil
from cluster import Cluster, OnCluster
from cluster_runs import Start, assert_complete, assert_computed_once, ended, held_amid_work, running
from workflow import DEADLINE, Workspace, wait_until, written_times


def assert_two_at_a_time(work: OnCluster) -> None:
    """Three jobs ran, at most two at once; each worker saw one GPU, and those that overlap saw different ones."""
    jobs = list(itertools.chain(*work.jobs().values()))
    assert [job["JobState"] for job in jobs] == ["COMPLETED"] * 3
    times = [(job["StartTime"], job["EndTime"]) for job in jobs]
    assert all(sum(begin <= moment < end for begin, end in times) <= 2 for moment, _ in times)
    spans = []
    for log in (work.root / "logs/embed").glob("*.log"):
        lines = log.read_text().splitlines()
        [device] = re.findall(r"CUDA_VISIBLE_DEVICES (.*)", lines[0])
        assert device in {"0", "1"}
        spans.append((lines[0][:19], lines[-1][:19], device))
    for one, other in itertools.combinations(spans, 2):
        if one[0] < other[1] and other[0] < one[1]:
            assert one[2] != other[2]


def minutes(limit: str) -> int:
    """Of a time as SLURM writes it, h:mm:ss."""
    hours, minutes, _ = map(int, limit.split(":"))
    return 60 * hours + minutes


def test_three_jobs_that_share_two_gpus_make_the_tables_of_a_local_run(
    start: Start, few: Workspace, local: Workspace
) -> None:
    work = start(few)
    work.run()
    assert_complete(work, local)
    assert_two_at_a_time(work)
    plan = json.loads((work.root / "results/plan/plan.json").read_text())["jobs"]
    for name, [job] in work.jobs().items():
        assert job["MinMemoryNode"] in {f"{plan[name]['memory_mb']}M", f"{plan[name]['memory_mb'] / 1024:g}G"}
        assert minutes(job["TimeLimit"]) > plan[name]["minutes"]


def test_an_array_of_jobs_that_asks_for_generic_resources_makes_the_same_tables(
    start: Start, few: Workspace, local: Workspace
) -> None:
    work = replace(start(few), profile="slurm-gres")
    work.run("--slurm-array-jobs", "embed")
    assert_complete(work, local)
    assert_two_at_a_time(work)
    assert {job.get("ArrayTaskId") for jobs in work.jobs().values() for job in jobs} == {"1", "2", "3"}


def test_the_cluster_has_no_way_out(slurm: Cluster) -> None:
    connect = "import socket; socket.create_connection(('192.0.2.1', 80))"
    command = slurm.command("srun", "python3", "-c", connect)
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=DEADLINE)
    assert "Network is unreachable" in result.stderr


def test_a_cancelled_and_a_requeued_job_go_on_from_their_committed_shards(
    start: Start, planned: Workspace, local: Workspace
) -> None:
    work = start(planned)
    with running(work) as snakemake:
        with held_amid_work(work, snakemake) as (one, other):
            committed = written_times(work.store_files())
            work.cluster.run("scancel", work.jobs()[one][0]["JobId"])
            work.cluster.run("scontrol", "requeue", work.jobs()[other][0]["JobId"])
        ended(snakemake, work)
    assert_complete(work, local)
    assert_computed_once(work, committed)
    assert [job["JobState"] for job in work.jobs()[one]] == ["CANCELLED", "COMPLETED"]
    [requeued] = work.jobs()[other]
    assert (requeued["JobState"], requeued["Restarts"]) == ("COMPLETED", "1")


def test_a_job_cut_off_by_its_limit_and_one_that_stops_before_it_are_finished_by_their_successors(
    start: Start, planned: Workspace, local: Workspace
) -> None:
    work = start(planned)
    with running(work, "--set-resources", "embed:runtime=5 if attempt == 1 else 10") as snakemake:
        with held_amid_work(work, snakemake, shards=1) as stopped:
            cut_off, stopping = stopped
            worker = work.workers()[cut_off]
            committed = written_times(work.store_files())
            work.cluster.run("scontrol", "update", f"JobId={work.jobs()[cut_off][0]['JobId']}", "TimeLimit=1")
            begin = datetime.fromisoformat(work.jobs()[stopping][0]["StartTime"])
            # In the last minute it begins no shard, and waits for none.
            wait_until(lambda: datetime.now() > begin + timedelta(seconds=245))
            stopped[stopping].close()
            psutil.wait_procs([worker], DEADLINE)
        ended(snakemake, work)
    assert_complete(work, local)
    assert_computed_once(work, committed)
    jobs = work.jobs()
    assert [job["JobState"] for job in jobs[cut_off]] == ["TIMEOUT", "COMPLETED"]
    assert [job["JobState"] for job in jobs[stopping]] == ["FAILED", "COMPLETED"]
    first = jobs[stopping][0]
    assert datetime.fromisoformat(first["EndTime"]) - begin <= timedelta(minutes=5)
    [log] = (work.root / ".snakemake/slurm_logs/rule_embed" / stopping).glob("*.log")
    assert "the allocation ends" in log.read_text()


def test_a_job_out_of_memory_is_finished_by_its_successor(start: Start, planned: Workspace, local: Workspace) -> None:
    work = start(planned)
    with running(work, "--set-resources", "embed:mem_mb=300 if attempt == 1 else 6000") as snakemake:
        ended(snakemake, work)
    assert_complete(work, local)
    for name, jobs in work.jobs().items():
        assert [job["JobState"] for job in jobs] == ["FAILED", "COMPLETED"]
        [log] = (work.root / ".snakemake/slurm_logs/rule_embed" / name).glob("*.log")
        assert "memory limit" in log.read_text()


def test_a_killed_snakemake_is_taken_up_while_its_jobs_go_on(
    start: Start, planned: Workspace, local: Workspace
) -> None:
    work = start(planned)
    with running(work) as killed, held_amid_work(work, killed) as stopped:
        committed = written_times(work.store_files())
        for process in psutil.Process(killed.pid).children():
            process.kill()
        killed.wait()
        work.run("--unlock")
        with running(work) as successor:
            wait_until(lambda: len(work.cluster.queue()) == 4, successor)
            for worker in stopped.values():
                worker.close()
            ended(successor, work)
            assert_complete(work, local)
    assert written_times(committed) == committed
    assert [len(jobs) for jobs in work.jobs().values()] == [2, 2]
    for name, receipt in work.receipts().items():
        assert {shard["name"] for shard in receipt["shards"]} == set(work.shards(name))


def test_snakemake_names_the_log_whose_last_line_tells_why_a_job_failed(start: Start, planned: Workspace) -> None:
    work = start(planned)
    for weights in (work.root / "store/weights").iterdir():
        weights.unlink()
    result = work.run("--retries", "0", check=False)
    assert result.returncode == 1
    logs = set(re.findall(r"log: (logs/embed/\w+\.log)", result.stderr))
    assert len(logs) == 2
    for log in logs:
        reason = (work.root / log).read_text().splitlines()[-1]
        assert "weights are missing" in reason
        assert reason in result.stderr

"""The test cluster itself: whatever happens, it leaves no process behind."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
from cluster import Cluster, cluster
from workflow import DEADLINE, wait_until

HERE = Path(__file__).parent
#: Brings a cluster up in a directory, prints its processes and waits.
HOLD = """
import sys
from pathlib import Path
from cluster import cluster
with cluster(Path(sys.argv[1])) as started:
    print(*(process.pid for process in started.processes()), flush=True)
    sys.stdin.read()
"""


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def running(pids: list[int]) -> list[int]:
    return list(filter(runs, pids))


def test_nothing_runs_once_a_cluster_is_left(slurm: Cluster, tmp_path: Path) -> None:
    with cluster(tmp_path) as other:
        other.run("sbatch", "--wrap", "sleep 1000")
        wait_until(lambda: any(process.name() == "sleep" for process in other.processes()))
        pids = [process.pid for process in other.processes()]
        assert running(pids) == pids
    assert running(pids) == []


def test_nothing_runs_once_the_process_that_started_a_cluster_was_killed(slurm: Cluster, tmp_path: Path) -> None:
    paths = os.pathsep.join(map(str, [HERE, HERE.parent]))
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
    )
    assert holder.stdin
    assert holder.stdout
    with holder.stdin, holder.stdout:
        pids = list(map(int, holder.stdout.readline().split()))
        assert len(running(pids)) >= 4
        holder.kill()
        holder.wait(DEADLINE)
        wait_until(lambda: running(pids) == [])

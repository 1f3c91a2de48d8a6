"""A real SLURM of two nodes on this machine, in namespaces of its own: its processes end with it, nothing is left."""

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from workflow import DEADLINE, ENVIRONMENT, ROOT, Workspace, wait_until

HERE = Path(__file__).parent
#: The second node, which only the partitions that say so have: there is what befalls nodes.
SPARE = "spare"
NEEDED = ["munged", "slurmctld", "slurmd", "slurmdbd", "mariadb-install-db", "ip"]
ACCOUNT = "my_account"

#: What a user changes in the profile. The GPUs are fake: they are asked for, and the config has the CPU used.
CHANGES = {
    "gpu_model: a100": "gpu_model: fake\n    gpu: 1",
    "gres: gpu:a100:1": "gres: gpu:fake:1",
}
# Fake GPUs must have device files. Memory is enforced without cgroups, by looking every second. A requeued job is held
# until its credential has expired. A node is down once it was silent for SlurmdTimeout.
_CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5,socket={root}/munge.socket
MpiDefault=none
SwitchType=switch/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherParams=OverMemoryKill
JobAcctGatherFrequency=1
AccountingStorageType=accounting_storage/{storage}
AccountingStoragePass={root}/munge.socket
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=500
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,sched_min_interval=200000
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
SlurmdTimeout=15
MinJobAge=3600
KillWait=5
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd-%n.log
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool-%n
GresTypes=gpu
NodeName=DEFAULT CPUs=8 CoresPerSocket=8 RealMemory=64000 Gres=gpu:fake:{gpus} State=UNKNOWN
NodeName={host} NodeAddr=127.0.0.1
NodeName={spare} NodeAddr=127.0.0.1 Port=6828
PartitionName=batch Nodes={host} Default=YES MaxTime=60 State=UP
PartitionName=cheap Nodes={spare} PriorityTier=1 PreemptMode=REQUEUE MaxTime=60 State=UP
PartitionName=scavenger Nodes={spare} PriorityTier=1 PreemptMode=CANCEL MaxTime=60 State=UP
PartitionName=urgent Nodes={spare} PriorityTier=2 PreemptMode=OFF MaxTime=60 State=UP
"""
_ACCOUNTING = """
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket
DbdHost={host}
DbdAddr=127.0.0.1
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StorageUser=root
PidFile={root}/slurmdbd.pid
LogFile={root}/slurmdbd.log
"""


@dataclass(frozen=True)
class Cluster:
    """A running SLURM."""

    root: Path
    """Its configuration, state and logs."""
    init: psutil.Process
    """The process that holds its namespaces; the daemons, and all jobs, are below it."""
    accounting: bool
    """Whether it has accounts, one of them `ACCOUNT`, and a database of its jobs."""

    def command(self, *arguments: str | Path, directory: Path | None = None) -> list[str]:
        """The command that runs another one within the cluster, where SLURM is the only thing to be reached."""
        enter = ["nsenter", f"--target={self.init.pid}", "--mount", "--net", "--pid"]
        return [*enter, "env", f"--chdir={directory or self.root}", *map(str, arguments)]

    def run(self, *arguments: str | Path) -> str:
        """What a command prints."""
        command = self.command(*arguments)
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=DEADLINE).stdout

    def processes(self) -> list[psutil.Process]:
        return [self.init, *self.init.children(recursive=True)]

    def start_daemon(self, *command: str, node: str | None = None) -> None:
        """Start slurmctld, or a node's slurmd, as at the beginning."""
        uts = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', node] if node else []
        self.run(*uts, *command)

    def kill_controller(self) -> None:
        """kill -9 of slurmctld."""
        self._kill([process for process in self.processes() if process.name() == "slurmctld"])

    def kill_node(self, node: str) -> None:
        """kill -9 of a node's slurmd, of its job steps, and of all that runs in them."""
        pid = int((self.root / f"slurmd-{node}.pid").read_text())
        [daemon] = [process for process in self.processes() if _number(process) == pid]
        host = _host(daemon)
        self._kill([process for process in self.processes() if _host(process) == host])

    def _kill(self, processes: list[psutil.Process]) -> None:
        assert processes
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, DEADLINE)

    def node_state(self, node: str) -> set[str]:
        """A node's state and its flags, as the controller has them: IDLE, MIXED, ALLOCATED or DOWN; DRAIN."""
        [line] = self.run("scontrol", "show", "node", node, "--oneliner").splitlines()
        [state] = [word.removeprefix("State=") for word in line.split() if word.startswith("State=")]
        return {part.rstrip("*") for part in state.split("+")}

    def queue(self) -> list[str]:
        """The ids of the jobs that wait or run."""
        return self.run("squeue", "--noheader", "--format=%A").split()

    def jobs(self) -> list[dict[str, str]]:
        """What the controller knows of each job, ended ones included, in the order of submission."""
        shown = [
            dict(field.split("=", 1) for field in line.split() if "=" in field)
            for line in self.run("scontrol", "show", "job", "--oneliner").splitlines()
        ]
        return sorted((job for job in shown if "JobId" in job), key=lambda job: int(job["JobId"]))


@dataclass(frozen=True, kw_only=True)
class OnCluster(Workspace):
    """A workspace in which Snakemake runs within the cluster, with a profile of the project."""

    cluster: Cluster
    profile: str = "slurm"
    partition: str = "batch"

    def command(self, *arguments: str, config: str = "config.yaml") -> list[str]:
        text = (ROOT / "profiles" / self.profile / "config.yaml").read_text()
        for old, new in CHANGES.items():
            text = text.replace(old, new)
        if not self.cluster.accounting:
            text = text.replace(f"    slurm_account: {ACCOUNT}\n", "")
        text = text.replace("slurm_partition: gpu", f"slurm_partition: {self.partition}")
        (self.root / "profile").mkdir(exist_ok=True)
        (self.root / "profile" / "config.yaml").write_text(text)
        snakemake = super().command(*arguments, config=config)
        cores = snakemake.index("--cores")
        options = ["--profile", "profile", "--set-threads", "embed=1", "--slurm-init-seconds-before-status-checks", "3"]
        snakemake[cores : cores + 2] = options
        return self.cluster.command(*snakemake, directory=self.root)

    def execute(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT)

    def jobs(self) -> dict[str, list[dict[str, str]]]:
        """By worker job, what the controller knows of its SLURM jobs, in the order of submission."""
        result: dict[str, list[dict[str, str]]] = {}
        for job in self.cluster.jobs():
            if job.get("WorkDir") == str(self.root):
                result.setdefault(job["Comment"].removeprefix("rule_embed_wildcards_"), []).append(job)
        return result

    def workers(self) -> dict[str, psutil.Process]:
        """The commands that embed, by worker job."""
        result = {}
        for process in self.cluster.processes():
            try:
                command = process.cmdline()
            except psutil.NoSuchProcess:
                continue
            if [Path(part).name for part in command[1:2]] == ["embed.py"]:
                [job] = [word.removeprefix("--job=") for word in command if word.startswith("--job=")]
                result[Path(job).stem] = process
        return result

    def shards(self, job: str) -> list[str]:
        """The names of a worker job's shards."""
        plan = json.loads((self.root / "results/plan/jobs" / f"{job}.json").read_text())
        return [shard["name"] for shard in plan["shards"]]


def missing() -> str:
    """Why no cluster can be had on this machine; empty if it can."""
    if os.geteuid() != 0:
        return "needs root to start SLURM's daemons"
    if absent := [name for name in NEEDED if not shutil.which(name)]:
        return f"{', '.join(absent)} not found; `make test-slurm` installs SLURM where there is apt-get"
    if subprocess.run(["unshare", "--mount", "--net", "--pid", "--fork", "true"], check=False).returncode:
        return "needs the right to make namespaces (CAP_SYS_ADMIN)"
    return ""


@contextmanager
def cluster(root: Path, gpus: int = 2, *, accounting: bool = False) -> Iterator[Cluster]:
    """Start munged, slurmctld, slurmd and, for accounting, slurmdbd in an empty directory; all is killed at the end.

    The namespaces have no network but loopback, and a /etc/slurm of their own. Their first process is killed if this
    one dies, and the kernel then kills the rest.
    """
    (root / "slurm").mkdir(parents=True)
    host = socket.gethostname().partition(".")[0]
    storage = "slurmdbd" if accounting else "none"
    config = _CONFIG.format(root=root, host=host, spare=SPARE, gpus=gpus, storage=storage)
    (root / "slurm" / "slurm.conf").write_text(config)
    (root / "slurm" / "gres.conf").write_text(f"Name=gpu Type=fake File={root}/gpu[0-{gpus - 1}]\n")
    unshare = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    with (root / "daemons.log").open("wb") as log:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig=KILL", *unshare, HERE / "daemons.sh", root, str(gpus), host, SPARE],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until(lambda: bool(psutil.Process(process.pid).children()), process)
        started = Cluster(root, psutil.Process(process.pid).children()[0], accounting)
        wait_until(lambda: (root / "munge.socket").exists(), process)
        if accounting:
            _start_accounting(started, host)
        started.start_daemon("slurmctld")
        for node in (host, SPARE):
            started.start_daemon("slurmd", "-N", node, node=node)
        wait_until(lambda: _is_ready(started), process)
        assert process.poll() is None, (root / "daemons.log").read_text()
        yield started
    finally:
        if process.poll() is None:
            for first in psutil.Process(process.pid).children() or [psutil.Process(process.pid)]:
                first.kill()
        process.wait()


def _start_accounting(cluster: Cluster, host: str) -> None:
    """MariaDB and slurmdbd, and an account that root may use."""
    root, database = cluster.root, cluster.root / "database"
    cluster.run("mariadb-install-db", "--no-defaults", f"--datadir={database}", "--user=root", "--skip-test-db")
    place = [f"--datadir={database}", f"--socket={database}/socket", "--bind-address=127.0.0.1"]
    command = ["mariadbd", "--no-defaults", *place, "--user=root", "--skip-grant-tables"]
    cluster.run("sh", "-c", '"$@" > "$0" 2>&1 &', root / "database.log", *command)
    wait_until(lambda: (database / "socket").exists())
    file = root / "slurm" / "slurmdbd.conf"
    file.touch(0o600)
    file.write_text(_ACCOUNTING.format(root=root, host=host))
    cluster.start_daemon("slurmdbd")
    listing = cluster.command("sacctmgr", "show", "cluster")
    wait_until(lambda: subprocess.run(listing, capture_output=True, check=False).returncode == 0)
    for words in (["cluster", "test"], ["account", ACCOUNT], ["user", "root", f"account={ACCOUNT}"]):
        cluster.run("sacctmgr", "--immediate", "add", *words)


def _is_ready(cluster: Cluster) -> bool:
    command = cluster.command("sinfo", "--noheader", "--Node", "--format=%t")
    return set(subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()) == {"idle"}


def _number(process: psutil.Process) -> int | None:
    """The number of a process within the cluster; None if it has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        status = Path(f"/proc/{process.pid}/status").read_text()
        [line] = [line for line in status.splitlines() if line.startswith("NSpid:")]
        return int(line.split()[-1])
    return None


def _host(process: psutil.Process) -> str:
    """What tells the namespace of a process's host name, which all of a node have in common; empty if it has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return str(Path(f"/proc/{process.pid}/ns/uts").readlink())
    return ""

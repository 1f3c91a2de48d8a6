"""The CPU cores that a process may use."""

import logging
import os
from pathlib import Path

#: Where Linux tells a process's control groups, where these are, and where the machine's NUMA nodes are.
_OF_PROCESS, _GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
_NODES = Path("/sys/devices/system/node")

log = logging.getLogger(__name__)


def quotas(of_process: Path = _OF_PROCESS, groups: Path = _GROUPS) -> list[float]:
    """The CPU seconds per second that each control group above this process grants it, as containers limit them.

    Linux, Documentation/admin-guide/cgroup-v2.rst (cpu.max), and of version 1 scheduler/sched-bwc.rst.
    """
    found = []
    for line in of_process.read_text().splitlines() if of_process.exists() else []:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = groups / "cpu" if controllers else groups
        group = top / path.lstrip("/")
        # A container of version 1 sees its own group as the top, and is told a path that it does not see.
        for directory in (group, *group.parents[: len(group.parts) - len(top.parts)]):
            found += _quota(directory)
    return found


def _quota(group: Path) -> list[float]:
    """That of one control group, none if it has no limit."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
    except OSError:
        return []
    return [] if quota in ("max", "-1") else [int(quota) / int(period)]


def usable_threads(threads: int) -> int:
    """So many, but no more than there are cores that this process may use by its binding and its control groups."""
    # macOS binds no process to cores.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else threads
    cores = max(int(min([cores, *quotas()])), 1)
    if cores < threads:
        log.warning("%d threads were asked for, but this process may use only %d of the CPU cores", threads, cores)
    return min(cores, threads)


def stay_on_a_node(index: int, processes: int, threads: int, nodes: Path = _NODES) -> None:
    """Bind this process, one of several, to the cores of a NUMA node: memory of its own node is nearer.

    As long as there are as many processes as nodes, and each node has cores for the threads of its processes.
    """
    own = _usable_by_node(nodes)
    if len(own) > processes:
        log.info("the cores are of %d NUMA nodes: with 'workers.processes: %d' each has its own", len(own), len(own))
    elif len(own) > 1 and min(map(len, own)) >= threads * -(-processes // len(own)):
        os.sched_setaffinity(0, own[index % len(own)])
        log.info("bound to the cores of NUMA node %d of %d", index % len(own) + 1, len(own))


def _usable_by_node(nodes: Path) -> list[set[int]]:
    """The cores of each NUMA node that this process may use, of those that have any.

    Linux, Documentation/ABI/stable/sysfs-devices-node.
    """
    found = []
    for cpulist in sorted(nodes.glob("node[0-9]*/cpulist")):
        cores: set[int] = set()
        for part in filter(None, cpulist.read_text().strip().split(",")):
            first, _, last = part.partition("-")
            cores |= set(range(int(first), int(last or first) + 1))
        if usable := cores & os.sched_getaffinity(0):
            found.append(usable)
    return found

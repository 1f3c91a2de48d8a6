"""The CPU cores that a process may use."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from esmflow.worker.cores import quotas
from workflow import run_code

LIMITED = """
import logging, os
from pathlib import Path
from esmflow.worker.cores import usable_threads
logging.basicConfig(format="%(message)s")
before = usable_threads(1)
{limit}
print(before, usable_threads(8), usable_threads(1))
"""


def check_that_it_uses_one_thread_and_says_so(limit: str) -> None:
    result = run_code(LIMITED.format(limit=limit))
    assert result.stdout.split() == ["1", "1", "1"]
    assert result.stderr.splitlines() == ["8 threads were asked for, but this process may use only 1 of the CPU cores"]


def test_a_worker_bound_to_one_core_uses_one_thread_and_says_so() -> None:
    check_that_it_uses_one_thread_and_says_so("os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})")


@pytest.fixture
def half_a_core() -> Iterator[Path]:
    """A control group of version 1 or 2 whose processes get 50 ms of each 100."""
    first, second = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")
    top = first if first.is_dir() else second
    group = top / f"esmflow-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        pytest.skip("this machine does not let us make a control group")
    try:
        if top == first:
            (group / "cpu.cfs_period_us").write_text("100000")
            (group / "cpu.cfs_quota_us").write_text("50000")
        else:
            (group / "cpu.max").write_text("50000 100000")
    except OSError:
        group.rmdir()
        pytest.skip("this machine has no control group for the CPU")
    yield group
    group.rmdir()


def test_a_worker_in_a_control_group_of_less_than_a_core_uses_one_thread_and_says_so(half_a_core: Path) -> None:
    check_that_it_uses_one_thread_and_says_so(
        f"Path({str(half_a_core / 'cgroup.procs')!r}).write_text(str(os.getpid()))"
    )


@pytest.mark.parametrize(
    ("of_process", "files", "expected"),
    [
        ("0::/", {"cpu.max": "max 100000"}, []),
        ("0::/", {"cpu.max": "250000 100000"}, [2.5]),
        ("0::/user.slice/user-7.slice/a.scope", {"user.slice/user-7.slice/cpu.max": "400000 100000"}, [4.0]),
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000", "cpu.max": "max 1"}, [3.0]),
        ("3:cpu,cpuacct:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, []),
        ("3:cpu,cpuacct:/docker/1f", {"cpu/cpu.cfs_quota_us": "150000", "cpu/cpu.cfs_period_us": "100000"}, [1.5]),
        ("4:cpuset:/a", {"cpu/a/cpu.cfs_quota_us": "150000", "cpu/a/cpu.cfs_period_us": "100000"}, []),
        ("", {}, []),
    ],
)
def test_what_control_groups_grant_is_read_as_linux_documents_it(
    of_process: str, files: dict[str, str], expected: list[float], tmp_path: Path
) -> None:
    (tmp_path / "self").write_text(f"9:memory:/x\n{of_process}\n" if of_process else "")
    for name, text in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(f"{text}\n")
    assert quotas(tmp_path / "self", tmp_path / "groups") == expected


def test_a_system_without_control_groups_limits_nothing(tmp_path: Path) -> None:
    assert quotas(tmp_path / "none", tmp_path / "none") == []


PLACED = """
import logging, os, sys
from pathlib import Path
from esmflow.worker.cores import stay_on_a_node
logging.basicConfig(format="%(message)s", level=logging.INFO)
stay_on_a_node(*map(int, sys.argv[1:4]), nodes=Path(sys.argv[4]))
print(*sorted(os.sched_getaffinity(0)))
"""


def placed(index: int, processes: int, threads: int, nodes: Path) -> tuple[set[int], str]:
    """The cores of a process after it was placed on one of these NUMA nodes, and what it says."""
    result = run_code(PLACED, index, processes, threads, nodes)
    assert result.returncode == 0, result.stderr
    return {int(core) for core in result.stdout.split()}, result.stderr


def test_processes_share_out_the_numa_nodes_whose_cores_they_may_use(tmp_path: Path) -> None:
    if not hasattr(os, "sched_getaffinity") or len(cores := sorted(os.sched_getaffinity(0))) < 2:
        pytest.skip("processes cannot be bound here, or have one core")
    others = {0: f"{cores[0]}", 1: f"{cores[1]}-{cores[-1]},9998-9999", 2: "10000", 3: ""}
    for number, cpulist in others.items():
        (tmp_path / f"node{number}").mkdir()
        (tmp_path / f"node{number}/cpulist").write_text(cpulist + "\n")
    assert placed(0, 2, 1, tmp_path) == ({cores[0]}, "bound to the cores of NUMA node 1 of 2\n")
    assert placed(1, 2, 1, tmp_path) == (set(cores[1:]), "bound to the cores of NUMA node 2 of 2\n")
    for processes, threads in ((4, 1), (2, 2)):
        assert placed(0, processes, threads, tmp_path) == (set(cores), ""), "one node has too few cores"
    everywhere, told = placed(0, 1, 1, tmp_path)
    assert everywhere == set(cores)
    assert "'workers.processes: 2'" in told
    assert placed(0, 2, 1, tmp_path / "node0") == (set(cores), ""), "there are no nodes"

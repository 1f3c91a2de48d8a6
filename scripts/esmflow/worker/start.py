"""How a process of the pool begins. Nothing here needs PyTorch until it runs."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from esmflow.worker.messages import ShardProgress

if TYPE_CHECKING:
    from esmflow.worker.process import Embedder

#: Where Linux tells a process's control groups, and where these are.
_OF_PROCESS, _GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")

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


@dataclass(frozen=True)
class Start:
    """How a process of the pool makes its embedder."""

    gpus: tuple[str, ...]
    """One for each process, by the number or UUID that CUDA_VISIBLE_DEVICES takes; none for the CPU."""
    threads: int
    tokens_per_pack: int | None

    @property
    def device(self) -> str:
        """What it is on: a GPU that cannot be used is an error, and never means the CPU."""
        return "cuda" if self.gpus else "cpu"

    def __call__(self, index: int, report: Callable[[ShardProgress], None]) -> "Embedder":
        """Called in the process, before PyTorch is imported: it sees one GPU, or none.

        Raises DeviceError if PyTorch cannot use the GPU.
        """
        self.hide_other_gpus(index)
        os.environ["OMP_NUM_THREADS"] = str(self.threads)
        from esmflow.worker.process import Embedder

        return Embedder.start(
            report, on_gpu=bool(self.gpus), threads=self.threads, tokens_per_pack=self.tokens_per_pack
        )

    def hide_other_gpus(self, index: int) -> None:
        """Leave this process the GPU of its number, whose context alone it can then make."""
        os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        os.environ["CUDA_VISIBLE_DEVICES"] = self.gpus[index] if self.gpus else ""
        # Packs differ in size: without this, memory that is free in pieces does for no large one.
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")

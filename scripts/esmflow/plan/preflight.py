"""What a plan will take, told before anything is embedded: jobs, device-hours, memory and disk."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil

from esmflow.errors import DeviceError, WriteError

_GIB = 1 << 30


@dataclass(frozen=True)
class Preflight:
    """What the jobs of a plan will take."""

    jobs: int
    sequences: int
    device: str
    """`cpu` or `cuda`; empty without jobs."""
    device_hours: float
    longest_minutes: float
    measured: bool
    """Whether the times rest on receipts, or on assumed rates."""
    memory_mb: int
    """Host memory of the largest job."""
    weights_bytes: int
    """Of the largest model in float32, without which a CPU job cannot begin."""
    store_bytes: int
    """What the new embeddings add to the store, not compressed."""
    table_bytes: int
    """The tables and residue files that do not exist yet and wait for the jobs."""

    def text(self, store: Path, results: Path) -> str:
        """A block of lines for people."""
        if not self.jobs:
            return "preflight: nothing is to be embedded"
        name = {"cpu": "CPU", "cuda": "GPU"}[self.device]
        basis = "measured in earlier jobs" if self.measured else "an assumed rate, until a job was measured"
        lines = [
            f"{self.sequences:,} sequences in {self.jobs:,} jobs",
            f"{self.device_hours:,.2f} {name}-hours, the longest job {self.longest_minutes:,.1f} minutes ({basis})",
            f"{self.memory_mb:,} MB of host memory for the largest job",
            f"{_amount(self.store_bytes)} for {store}, {_amount(_free(store))} free",
            f"{_amount(self.table_bytes)} for tables in {results}, {_amount(_free(results))} free",
        ]
        return "\n    ".join(["preflight:", *lines])

    def require_room(self, store: Path, results: Path, *, local: bool) -> None:
        """Raise WriteError if what is to be written does not fit on the disks, or DeviceError if a model does not fit.

        Memory is only judged where the jobs run on this machine's CPUs, and by its weights alone, which are sure.
        """
        needed = {store: self.store_bytes, results: self.table_bytes}
        if _device(store) == _device(results):
            needed = {results: self.store_bytes + self.table_bytes}
        for place, size in needed.items():
            if size > _free(place):
                raise WriteError(
                    f"{place}: the run needs about {_amount(size)} there and {_amount(_free(place))} are free; "
                    "free some space, or set 'store' and 'results' to a larger disk"
                )
        memory = psutil.virtual_memory().total
        if local and self.device == "cpu" and self.weights_bytes > memory:
            raise DeviceError(
                f"memory: a model's weights take {_amount(self.weights_bytes)}, this machine has {_amount(memory)}; "
                "use a smaller model or a machine with more memory"
            )


def _existing(path: Path) -> Path:
    """The directory itself, or the nearest above it that exists."""
    return path if path.exists() else _existing(path.absolute().parent)


def _free(path: Path) -> int:
    return shutil.disk_usage(_existing(path)).free


def _device(path: Path) -> int:
    return _existing(path).stat().st_dev


def _amount(size: int) -> str:
    return f"{size / _GIB:,.2f} GiB" if size >= _GIB else f"{size / 2**20:,.1f} MiB"

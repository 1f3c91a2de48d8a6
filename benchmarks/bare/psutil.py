"""What the worker asks of psutil, for a machine where that is not installed; see gpu.py."""

import os
from pathlib import Path
from types import SimpleNamespace


class NoSuchProcess(Exception):  # noqa: N818
    pass


class AccessDenied(Exception):  # noqa: N818
    pass


def virtual_memory() -> SimpleNamespace:
    return SimpleNamespace(available=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES"))


def boot_time() -> float:
    return 0.0


class Process:
    def __init__(self, pid: int) -> None:
        self._stat = Path(f"/proc/{pid}/stat")

    def create_time(self) -> float:
        """Seconds after boot."""
        try:
            fields = self._stat.read_text().rpartition(")")[2].split()
        except OSError as error:
            raise NoSuchProcess from error
        return int(fields[19]) / os.sysconf("SC_CLK_TCK")

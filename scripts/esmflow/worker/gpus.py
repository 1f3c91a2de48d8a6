"""The GPUs of a worker job, asked of NVIDIA's driver, and shared out among the jobs of a machine."""

import fcntl
import logging
import os
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pynvml

from esmflow.errors import DeviceError
from esmflow.heartbeat import GpuFigures

#: Seconds between two looks for a GPU that is free.
_LOOK_AGAIN = 1.0

log = logging.getLogger(__name__)


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as NVIDIA's library names them: by number or by UUID.

    CUDA_VISIBLE_DEVICES, where it is set, is the scheduler's word; else all that the driver knows.
    """
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        names = [name.strip() for name in visible.split(",")]
        return [name for name in names if name not in ("", "-1", "NoDevFiles")]
    try:
        pynvml.nvmlInit()
        return [str(number) for number in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []


@contextmanager
def claimed_gpus(count: int) -> Iterator[list[str]]:
    """Up to so many of the visible GPUs that no other job of this machine has claimed; none if none is visible.

    Waits while all are claimed. A claim is a lock on a file, which the kernel frees when its holder is gone.
    """
    visible = visible_gpus() if count else []
    with ExitStack() as stack:
        claimed: list[str] = []
        waiting = False
        while visible and not claimed:
            for name in visible:
                if len(claimed) < count and (lock := _lock(name)) is not None:
                    stack.callback(os.close, lock)
                    claimed.append(name)
            if not claimed:
                if not waiting:
                    log.info("waiting for one of the GPUs %s, which other jobs have", ", ".join(visible))
                waiting = True
                time.sleep(_LOOK_AGAIN)
        yield claimed


def _lock(gpu: str) -> int | None:
    """The descriptor of a lock on a GPU; None if another process has it."""
    path = Path(tempfile.gettempdir(), f"esmflow-{re.sub(r'[^A-Za-z0-9-]', '_', _uuid(gpu))}.lock")
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        # One of another user may be opened, but where /tmp is protected not with O_CREAT.
        lock = os.open(path, flags)
    except FileNotFoundError:
        lock = os.open(path, flags | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    except OSError as error:
        os.close(lock)
        raise DeviceError(f"{path}: cannot be locked ({error.strerror}); set TMPDIR to a local directory") from error
    return lock


def _uuid(gpu: str) -> str:
    """What names a GPU whatever numbers this process sees; its number where there is no driver to ask."""
    if not gpu.isdecimal():
        return gpu
    try:
        pynvml.nvmlInit()
        return str(pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(int(gpu))))
    except pynvml.NVMLError:
        return gpu


def gpu_figures(gpus: Sequence[str]) -> list[GpuFigures]:
    """Those of each GPU; nothing where the driver gives none."""
    figures = []
    try:
        pynvml.nvmlInit()
        for name in gpus:
            handle = (
                pynvml.nvmlDeviceGetHandleByIndex(int(name))
                if name.isdecimal()
                else pynvml.nvmlDeviceGetHandleByUUID(name)
            )
            utilisation = pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
            figures.append(GpuFigures(utilisation, pynvml.nvmlDeviceGetMemoryInfo(handle).used))
    except pynvml.NVMLError:
        pass
    return figures

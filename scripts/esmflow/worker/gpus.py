"""The GPUs of a worker job, asked of NVIDIA's driver."""

import os

import pynvml

from esmflow.heartbeat import GpuFigures


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as NVIDIA's library names them: by number or by UUID.

    CUDA_VISIBLE_DEVICES, where it is set, is the scheduler's word; else all that the driver knows.
    """
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in visible.split(",") if name.strip() not in ("", "-1", "NoDevFiles")]
    try:
        pynvml.nvmlInit()
        return [str(number) for number in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []


def gpu_figures() -> list[GpuFigures]:
    """Those of each visible GPU; nothing where the driver gives none."""
    figures = []
    try:
        pynvml.nvmlInit()
        for name in visible_gpus():
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

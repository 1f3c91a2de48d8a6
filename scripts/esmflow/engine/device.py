"""Devices: whether one can be used, and whether a model fits into its memory."""

import os
import timeit
from functools import cache

import psutil
import pynvml
import torch

from esmflow.architecture import Architecture
from esmflow.errors import DeviceError
from esmflow.model.parts import dense
from esmflow.model.trunk import DTYPES

_GIB = 1 << 30


def usable_gpu() -> torch.device:
    """The one GPU that this process sees, whose products add up in float32.

    Raises DeviceError if PyTorch cannot use it.
    """
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise DeviceError(
            f"GPU {os.environ.get('CUDA_VISIBLE_DEVICES', '')}: PyTorch {torch.__version__} cannot use it ({reason}); "
            f"{_driver()}; install a PyTorch that suits the driver and the card (docs/gpu.md), or set "
            "'workers.gpus_per_job: 0' to use the CPU"
        ) from error
    return torch.device("cuda", 0)


def _driver() -> str:
    """What NVIDIA's driver says of itself."""
    try:
        pynvml.nvmlInit()
        cuda = pynvml.nvmlSystemGetCudaDriverVersion_v2()
        return f"the driver is {pynvml.nvmlSystemGetDriverVersion()}, for CUDA up to {cuda // 1000}.{cuda % 1000 // 10}"
    except pynvml.NVMLError as error:
        return f"NVIDIA's driver says: {error}"


def is_lost(device: torch.device, error: RuntimeError) -> bool:
    """Whether an error of PyTorch's tells that the device can be used no more; cuBLAS and Triton have plain ones."""
    if isinstance(error, torch.AcceleratorError):
        return True
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize(device)
    except (RuntimeError, AssertionError):
        return True
    return False


def free_memory(device: torch.device) -> int:
    """Bytes that are free on the device, really, whoever holds the rest."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)


@cache
def relative_rate(precision: str) -> float:
    """How fast the CPU multiplies matrices in a precision, as a share of how fast it does in float32."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(shape, generator=generator) for shape in ((256, 1280), (1280, 1280)))

    def seconds(dtype: torch.dtype) -> float:
        own, multiply = x.to(dtype), dense((weight.to(dtype), None))
        return min(timeit.repeat(lambda: multiply(own), number=1, repeat=4))

    return seconds(torch.float32) / seconds(DTYPES[precision])


def weights_bytes(shape: Architecture, precision: str) -> int:
    """Bytes of the trunk's weights on a device."""
    positions = (shape.max_residues or 0) * shape.embed_dim
    return shape.matrix_numbers * DTYPES[precision].itemsize + 4 * (shape.vocabulary * shape.embed_dim + positions)


def require_memory(shape: Architecture, precision: str, device: torch.device, free: int) -> None:
    """Raise DeviceError if the weights do not fit into so many free bytes, before anything is loaded."""
    needed = weights_bytes(shape, precision)
    if needed > free:
        raise DeviceError(
            f"{device}: the weights need {needed / _GIB:.1f} GiB in {precision} and {free / _GIB:.1f} GiB are free; "
            "use a device with more memory, a smaller model, or 16 bit"
        )

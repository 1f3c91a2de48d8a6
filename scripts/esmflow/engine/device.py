"""Devices: which one, at what precision, and whether a model fits into its memory."""

import re

import psutil
import torch

from esmflow.architecture import Architecture
from esmflow.errors import DeviceError
from esmflow.model.trunk import DTYPES

_GIB = 1 << 30


def choose_device(name: str) -> torch.device:
    """The device `name` ('auto', 'cpu', 'cuda' or 'cuda:N'). Raises DeviceError if it is not usable."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise DeviceError(f"device {name}: unknown; use auto, cpu, cuda or cuda:N")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError(f"device {name}: no usable CUDA device on this machine; ask for a GPU or use --device cpu")
    return device


def choose_precision(name: str, device: torch.device, shape: Architecture) -> str:
    """What computes at a configured precision: itself, or for `auto` fp32 on a CPU and 16 bit on a GPU.

    fp16 has the smaller error, bf16 has room for the activations of ESM-C, which grow large.
    """
    if name != "auto":
        return name
    if device.type != "cuda":
        return "fp32"
    return "bf16" if shape.kind == "ESM-C" else "fp16"


def free_memory(device: torch.device) -> int:
    """Bytes that are free on the device, really, whoever holds the rest."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)


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

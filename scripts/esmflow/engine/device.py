"""Devices: which one, at what precision, and what fits into its memory."""

import re
from collections.abc import Callable

import psutil
import torch

from esmflow.descriptor import LETTERS, Architecture
from esmflow.engine.packing import CPU_TOKENS
from esmflow.errors import DeviceError
from esmflow.model.pooling import represent
from esmflow.model.trunk import DTYPES, Esm, Pack
from esmflow.spec import Output

#: A pack longer than this gains nothing on any GPU that there is.
MOST_TOKENS = 131_072
#: Part of the free memory that packs may take.
_SHARE = 0.8
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


def choose_precision(name: str, device: torch.device) -> str:
    """What computes at a configured precision: itself, or for `auto` fp16 on a GPU and fp32 on a CPU."""
    if name != "auto":
        return name
    return "fp16" if device.type == "cuda" else "fp32"


def free_memory(device: torch.device) -> int:
    """Bytes that are free on the device, really, whoever holds the rest."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)


def weights_bytes(shape: Architecture, precision: str) -> int:
    """Bytes of the trunk's weights on a device."""
    positions = (shape.max_residues or 0) * shape.embed_dim
    return shape.matrix_numbers * DTYPES[precision].itemsize + 4 * (LETTERS * shape.embed_dim + positions)


def require_memory(shape: Architecture, precision: str, device: torch.device, free: int) -> None:
    """Raise DeviceError if the weights do not fit into so many free bytes, before anything is loaded."""
    needed = weights_bytes(shape, precision)
    if needed > free:
        raise DeviceError(
            f"{device}: the weights need {needed / _GIB:.1f} GiB in {precision} and {free / _GIB:.1f} GiB are free; "
            "use a device with more memory, a smaller model, or 16 bit"
        )


def probe_tokens(
    shape: Architecture, run: Callable[[Pack], None], free: Callable[[], int], peak: Callable[[], int]
) -> int:
    """The tokens per pack that fit into the memory that is free, found by running packs.

    run: runs a pack; free: bytes free now; peak: the most bytes that the last run held beyond what was there before it.
    Two sizes are run, since a part of what a run takes does not grow with it.
    """
    longest = min(shape.max_residues or 1022, 1022)
    sizes, peaks = [2, 8], []
    for count in sizes:
        run(Pack.of([b"A" * longest] * count))
        peaks.append(peak())
    per_token = max((peaks[1] - peaks[0]) / ((sizes[1] - sizes[0]) * (longest + 2)), 1)
    fixed = max(peaks[0] - per_token * sizes[0] * (longest + 2), 0)
    tokens = int((_SHARE * free() - fixed) / per_token)
    return min(max(tokens, longest + 2), MOST_TOKENS)


def auto_tokens(model: Esm) -> int:
    """The tokens per pack for a model on its device: for the cache of a CPU, or measured on a GPU."""
    device = model.device
    if device.type != "cuda":
        return CPU_TOKENS
    before = torch.cuda.memory_allocated(device)

    def run(pack: Pack) -> None:
        torch.cuda.reset_peak_memory_stats(device)
        represent(model, pack, [Output(model.architecture.layers, "mean")], torch.cuda.current_stream(device)).get()

    return probe_tokens(
        model.architecture,
        run,
        free=lambda: free_memory(device) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device),
        peak=lambda: torch.cuda.max_memory_allocated(device) - before,
    )

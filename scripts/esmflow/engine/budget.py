"""How many tokens go into a pack: for the cache of a CPU, or measured on a GPU."""

from collections.abc import Callable

import torch

from esmflow.architecture import Architecture
from esmflow.engine.device import free_memory
from esmflow.engine.packing import CPU_TOKENS
from esmflow.model.pack import Pack
from esmflow.model.pooling import represent
from esmflow.model.trunk import Esm
from esmflow.representation import Output

#: A pack longer than this gains nothing on any GPU that there is.
MOST_TOKENS = 131_072
#: Part of the free memory that packs may take.
_SHARE = 0.8


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
        represent(model, [pack], [Output(model.architecture.layers, "mean")], torch.cuda.current_stream(device)).get()

    return probe_tokens(
        model.architecture,
        run,
        free=lambda: free_memory(device) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device),
        peak=lambda: torch.cuda.max_memory_allocated(device) - before,
    )

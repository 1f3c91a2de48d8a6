"""Estimates of worker jobs, made before they run: how long they take and how much memory the host needs."""

import math
from collections import defaultdict
from collections.abc import Collection, Iterable
from typing import NamedTuple

from esmflow.planned_model import Descriptor, PlannedModel
from esmflow.receipt import Receipt
from esmflow.representation import Output

#: FLOPs per second of a device where no receipt tells. Two threads of an AMD EPYC were measured at 1e11 with ESM-2 8M
#: in float32; the rates of GPUs are assumptions, meant to be low, which nobody has measured.
ASSUMED_RATES = {("cpu", "fp32"): 1e11, ("cpu", "16 bit"): 2e10, ("cuda", "fp32"): 5e12, ("cuda", "16 bit"): 2e13}
#: Until the first pack is computed: Python and its libraries, then the weights at this many bytes per second.
_START_SECONDS, _LOAD_RATE = 10, 2e8
#: Host memory of a worker without its weights. That of one with a GPU (CUDA's libraries, pinned memory) is assumed.
_BASE_BYTES = {"cpu": 1 << 30, "cuda": 5 << 30}
#: Tokens in hand per CPU thread, at most, where the worker decides how many go into a pack.
_AUTO_TOKENS = 1024
#: Float32 values per token and dimension of the embedding while a pack goes through a layer.
_VALUES_PER_TOKEN = 16
#: A shard that is committed is there three times: as computed, in columns, in pages. Beside it, the next is computed.
_SHARD_COPIES = 4


class Rate(NamedTuple):
    """How fast worker jobs of a model are taken to be."""

    device: str
    """`cpu` or `cuda`."""
    flops_per_second: float
    """Of a whole job."""
    measured: bool
    """Whether receipts told it."""
    of_process: float
    """FLOPs per second of one of its processes, rounded to a power of two times the assumed rate."""

    def shard_cost(self, minutes: float) -> float:
        """FLOPs of a shard that takes a process about so long.

        Since rates are rounded, the same work is cut alike, and has the same names, though each run measures a little
        otherwise.
        """
        return 60 * minutes * self.of_process


def rate(receipts: Iterable[Receipt], model: PlannedModel, gpus_per_job: int) -> Rate:
    """The rate that earlier jobs had: those of the same model, else of any on that device; else an assumed one.

    Where GPUs are asked for and all receipts tell of CPUs, there is no GPU, and the next job will find none either.
    """
    flops: defaultdict[tuple[str, str, str], float] = defaultdict(float)
    flops_of_one, seconds = flops.copy(), flops.copy()
    for receipt in receipts:
        for name, use in receipt.models.items():
            kind = use.device.partition(":")[0], use.precision
            for key in (name, ""):
                flops[*kind, key] += use.flops * receipt.figures.processes
                flops_of_one[*kind, key] += use.flops
                seconds[*kind, key] += use.computing_seconds
    device = "cuda" if gpus_per_job and {known for known, _, _ in flops} != {"cpu"} else "cpu"
    computed = model.precision_on(device)
    assumed = ASSUMED_RATES[device, "fp32" if computed == "fp32" else "16 bit"]
    for name in (model.name, ""):
        if spent := seconds[device, computed, name]:
            doublings = round(math.log2(flops_of_one[device, computed, name] / spent / assumed))
            return Rate(device, flops[device, computed, name] / spent, True, assumed * 2.0**doublings)
    return Rate(device, assumed * max(gpus_per_job, 1), False, assumed)


def minutes(descriptor: Descriptor, cost: float, rate: Rate) -> float:
    """How long a job of so many FLOPs is expected to take, its start included."""
    load = _stored_bytes(descriptor) / _LOAD_RATE
    return (_START_SECONDS + load + cost / rate.flops_per_second) / 60


def memory_mb(
    descriptor: Descriptor,
    outputs: Collection[Output],
    *,
    device: str,
    gpus: int,
    threads: int,
    longest: int,
    tokens_per_pack: int | None,
    shard_bytes: int,
) -> int:
    """Host memory in MB (2^20 bytes) that a job needs at its peak, rather too much than too little.

    gpus: of the job, each of which has a process; longest: residues of the longest piece that goes through the model
    at once; shard_bytes: float32 values of the largest shard.
    """
    shape = descriptor.architecture
    stored = _stored_bytes(descriptor)
    needed = _BASE_BYTES[device] + _SHARD_COPIES * shard_bytes
    if device == "cuda":
        return -(-gpus * (needed + stored) >> 20)
    tokens = max(tokens_per_pack or _AUTO_TOKENS, longest + 2)
    pack = 4 * tokens * _VALUES_PER_TOKEN * shape.embed_dim
    if any(output.kind.from_attention for output in outputs):
        pack += 4 * 4 * shape.heads * longest**2
    # While they are loaded, the weights are there as stored and as computed with.
    return -(-(needed + stored + 4 * shape.matrix_numbers + threads * pack) >> 20)


def _stored_bytes(descriptor: Descriptor) -> int:
    """Of the weights' files."""
    return sum(size for size, _ in descriptor.stamp)

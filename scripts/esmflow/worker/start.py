"""How a process of the pool begins. Nothing here needs PyTorch until it runs."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from esmflow.worker.cores import stay_on_a_node
from esmflow.worker.messages import ShardProgress

if TYPE_CHECKING:
    from esmflow.worker.process import Embedder


@dataclass(frozen=True)
class Start:
    """How a process of the pool makes its embedder."""

    gpus: tuple[str, ...]
    """One for each process, by the number or UUID that CUDA_VISIBLE_DEVICES takes; none for the CPU."""
    threads: int
    tokens_per_pack: int | None
    """None: what suits the device."""
    processes: int = 1
    """Of the pool; on GPUs as many as these."""

    @property
    def device(self) -> str:
        """What it is on: a GPU that cannot be used is an error, and never means the CPU."""
        return "cuda" if self.gpus else "cpu"

    def __call__(self, index: int, report: Callable[[ShardProgress], None]) -> "Embedder":
        """Called in the process, before PyTorch is imported: it sees one GPU, or none.

        Raises DeviceError if PyTorch cannot use the GPU.
        """
        self.hide_other_gpus(index)
        if not self.gpus:
            stay_on_a_node(index, self.processes, self.threads)
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

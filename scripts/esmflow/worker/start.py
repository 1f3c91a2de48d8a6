"""How a process of the pool begins. Nothing here needs PyTorch until it runs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from esmflow.worker.messages import ShardProgress

if TYPE_CHECKING:
    from esmflow.worker.process import Embedder


@dataclass(frozen=True)
class Start:
    """How a process of the pool makes its embedder."""

    device: str
    """As for `choose_device`; of several GPUs, each process takes that of its own number."""
    threads: int
    tokens_per_pack: int | None

    def __call__(self, index: int, report: Callable[[ShardProgress], None]) -> "Embedder":
        """Called in the process. Raises DeviceError if there is no such device."""
        from esmflow.worker.process import Embedder

        return Embedder.start(self.device, index, report, threads=self.threads, tokens_per_pack=self.tokens_per_pack)

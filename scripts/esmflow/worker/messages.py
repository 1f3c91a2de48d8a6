"""What the worker and its processes tell each other. Nothing here needs PyTorch until it runs."""

from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from esmflow.engine.figures import Figures
from esmflow.job import Shard, read_shard
from esmflow.planned_model import PlannedModel
from esmflow.receipt import ModelUse
from esmflow.store.quarantine import SetAsideError, reading

if TYPE_CHECKING:
    from esmflow.worker.process import Embedder


@dataclass(frozen=True)
class ShardProgress:
    """How far a process is with what it embeds."""

    model: str
    target: Path
    sequences: int = 0
    residues: int = 0
    cost: float = 0.0
    """FLOPs."""
    computed: bool = False
    """Whether nothing is left but to write it: the process takes the next."""


@dataclass(frozen=True)
class ProcessFigures:
    """What a process has done since it began."""

    pid: int
    loads: int
    switches: int
    peak_memory_bytes: int


@dataclass(frozen=True)
class ShardDone:
    """What it took to embed and commit a shard, or a part of one."""

    use: ModelUse
    figures: Figures
    loading_seconds: float
    """Until its model was there."""
    process: ProcessFigures


@dataclass(frozen=True)
class EmbedShard:
    """Embed the sequences first..stop-1 of a shard and commit them to `target`."""

    model: PlannedModel
    shard: Shard
    first: int
    stop: int
    target: Path

    @property
    def cost(self) -> float:
        """FLOPs, about."""
        return self.shard.cost * (self.stop - self.first) / self.shard.sequences

    def read(self) -> tuple[pa.Array, list[bytes]]:
        """Keys, binary(32), and residues. Raises IncompleteError if the shard's file is damaged, or gone."""
        file = Path(self.shard.file)
        try:
            with reading(file, store=self.target.parents[3]):
                return read_shard(file, self.first, self.stop)
        except FileNotFoundError as error:
            raise SetAsideError(f"{file}: is gone; run again with --forcerun plan") from error

    def run(self, embedder: "Embedder") -> Future[ShardDone]:
        """Returns what `Embedder.embed` does."""
        return embedder.embed(self)

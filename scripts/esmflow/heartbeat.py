"""The heartbeat: what a worker job is at, for those who watch it."""

import os
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path

from esmflow import files

#: Seconds between two heartbeats. One that is several times older is of a worker that is dead.
INTERVAL = 5.0

STATES = ("starting", "ready", "busy", "draining", "dead")


@dataclass(frozen=True)
class ShardInHand:
    """What a process of the worker is busy with."""

    model: str
    shard: str


@dataclass(frozen=True)
class GpuFigures:
    """What the driver tells of a GPU of the job."""

    utilisation: float
    """Share of the time."""
    memory_bytes: int


@dataclass(frozen=True)
class Heartbeat:
    """What a worker job is at. Times are Unix seconds; counts are since the job began."""

    job: str
    state: str = "starting"
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)
    processes: list[int] = field(default_factory=list)
    started: float = field(default_factory=time.time)
    updated: float = field(default_factory=time.time)
    interval: float = INTERVAL
    busy: list[ShardInHand] = field(default_factory=list)
    shards: int = 0
    shards_done: int = 0
    sequences: int = 0
    sequences_done: int = 0
    residues: int = 0
    residues_done: int = 0
    cost: float = 0.0
    """FLOPs."""
    cost_done: float = 0.0
    residues_per_second: float = 0.0
    packs: int = 0
    tokens: int = 0
    packs_split: int = 0
    waiting_seconds: float = 0.0
    """Time that devices waited for packs to be made."""
    model_loads: int = 0
    model_switches: int = 0
    process_restarts: int = 0
    queue_depth: int = 0
    memory_bytes: int = 0
    """Of the largest process so far."""
    gpus: list[GpuFigures] = field(default_factory=list)
    """One for each GPU of the job."""

    def save(self, path: Path) -> None:
        """Write the heartbeat as JSON, in one atomic step."""
        files.write_json(path, self)

    @classmethod
    def load(cls, path: Path) -> "Heartbeat":
        """Read a heartbeat written by `save`. Raises DataError if it is damaged."""
        return files.read_json(path, cls)

"""The health of a worker job, for those who watch it: a heartbeat (JSON) and the same as Prometheus metrics."""

import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Metric, write_to_textfile
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from esmflow import files

#: Seconds between two heartbeats. One that is several times older is of a worker that is dead.
INTERVAL = 5.0

STATES = ("starting", "ready", "busy", "draining", "dead")


@dataclass
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
    busy: list[dict[str, str]] = field(default_factory=list)
    """Model and shard that are in hand."""
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
    gpus: list[dict[str, float]] = field(default_factory=list)
    """For each GPU of the job: utilisation (share) and memory_bytes."""

    def metrics(self) -> Iterator[Metric]:
        """The same as Prometheus metrics."""
        labels = ["job"]
        for name, help_, value in (
            ("sequences", "Sequences embedded.", self.sequences_done),
            ("residues", "Residues embedded.", self.residues_done),
            ("packs", "Forward passes.", self.packs),
            ("tokens", "Tokens in forward passes.", self.tokens),
            ("padding_tokens", "Padding in forward passes: packs have none.", 0),
            ("shards", "Shards committed.", self.shards_done),
            ("model_loads", "Models loaded, in all processes.", self.model_loads),
            ("model_switches", "Changes from one model to another.", self.model_switches),
            ("packs_split", "Packs that did not fit into memory.", self.packs_split),
            ("process_restarts", "Processes that died and were replaced.", self.process_restarts),
            ("waiting_seconds", "Time that devices waited for packs.", self.waiting_seconds),
        ):
            counter = CounterMetricFamily(f"esmflow_{name}", help_, labels=labels)
            counter.add_metric([self.job], value)
            yield counter
        for name, help_, value in (
            ("queue_depth", "Shards that no process has begun.", self.queue_depth),
            ("memory_bytes", "Peak memory of the largest process.", self.memory_bytes),
            ("updated_timestamp_seconds", "When the worker wrote this.", self.updated),
        ):
            gauge = GaugeMetricFamily(f"esmflow_{name}", help_, labels=labels)
            gauge.add_metric([self.job], value)
            yield gauge
        state = GaugeMetricFamily("esmflow_state", "1 for the state that the worker is in.", labels=["job", "state"])
        for name in STATES:
            state.add_metric([self.job, name], name == self.state)
        yield state
        for name in ("utilisation", "memory_bytes"):
            gpu = GaugeMetricFamily(f"esmflow_gpu_{name}", f"GPU {name.replace('_', ' ')}.", labels=["job", "gpu"])
            for number, values in enumerate(self.gpus):
                gpu.add_metric([self.job, str(number)], values[name])
            yield gpu


class Health:
    """Writes a job's heartbeat to `{directory}/{job}.json` and its metrics to `{directory}/{job}.prom`."""

    def __init__(
        self,
        directory: Path,
        heartbeat: Heartbeat,
        *,
        clock: Callable[[], float] = time.time,
        gpus: "Callable[[], list[dict[str, float]]] | None" = None,
    ) -> None:
        self.heartbeat = heartbeat
        self._directory, self._clock, self._gpus = directory, clock, gpus or gpu_figures
        self._registry = CollectorRegistry()
        self._registry.register(_Metrics(heartbeat))
        self._written = float("-inf")

    def update(self, state: str | None = None, **changes: Any) -> None:
        """Take changes; write them if the state is another, or if it is time."""
        turned = state is not None and state != self.heartbeat.state
        self.heartbeat.state = state or self.heartbeat.state
        for name, value in changes.items():
            setattr(self.heartbeat, name, value)
        now = self._clock()
        # A clock that was set back must not stop the heart.
        if turned or not 0 <= now - self._written < INTERVAL:
            self._written = self.heartbeat.updated = now
            self.heartbeat.gpus = self._gpus()
            self._directory.mkdir(parents=True, exist_ok=True)
            files.write_text(
                self._directory / f"{self.heartbeat.job}.json", json.dumps(asdict(self.heartbeat), indent=1) + "\n"
            )
            write_to_textfile(str(self._directory / f"{self.heartbeat.job}.prom"), self._registry)


class _Metrics:
    def __init__(self, heartbeat: Heartbeat) -> None:
        self._heartbeat = heartbeat

    def collect(self) -> Iterator[Metric]:
        return self._heartbeat.metrics()


def visible_gpus(environment: Mapping[str, str] = os.environ) -> list[str]:
    """The GPUs that this process may use, as NVIDIA's library names them: by number or by UUID.

    CUDA_VISIBLE_DEVICES, where it is set, is the scheduler's word; else all that the driver knows.
    """
    if (visible := environment.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in visible.split(",") if name.strip() not in ("", "-1", "NoDevFiles")]
    import pynvml

    try:
        pynvml.nvmlInit()
        return [str(number) for number in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []


def gpu_figures() -> list[dict[str, float]]:
    """Utilisation (share) and memory in use (bytes) of each visible GPU; nothing where the driver gives none."""
    import pynvml

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
            figures.append({"utilisation": utilisation, "memory_bytes": pynvml.nvmlDeviceGetMemoryInfo(handle).used})
    except pynvml.NVMLError:
        pass
    return figures

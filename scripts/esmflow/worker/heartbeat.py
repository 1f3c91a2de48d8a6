"""Writing the heartbeat of a worker job, as JSON and as Prometheus metrics."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from prometheus_client import Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from esmflow import files
from esmflow.heartbeat import INTERVAL, STATES, Heartbeat
from esmflow.worker.gpus import gpu_figures


class Heart:
    """Writes a job's heartbeats to `{directory}/{job}.json`, and their metrics to `{directory}/{job}.prom`.

    gpus: those of the job, as `visible_gpus` names them.
    """

    def __init__(self, directory: Path, gpus: Sequence[str] = ()) -> None:
        self._directory, self._gpus = directory, gpus
        self._last: Heartbeat | None = None
        self._written = Heartbeat("", updated=float("-inf"))

    def beat(self, heartbeat: Heartbeat) -> None:
        """Take what the job is at; write it if its state is another, or if it is time."""
        self._last = heartbeat
        now, written = time.time(), self._written
        # A clock that was set back must not stop the heart.
        if heartbeat.state != written.state or not 0 <= now - written.updated < INTERVAL:
            self._written = beat = replace(heartbeat, updated=now, gpus=gpu_figures(self._gpus))
            beat.save(self._directory / f"{beat.job}.json")
            metrics = generate_latest(_Metrics(beat))
            files.write_text(self._directory / f"{beat.job}.prom", metrics.decode())

    def stop(self) -> None:
        """Tell that the job has ended."""
        if self._last:
            self.beat(replace(self._last, state="dead"))


class _Metrics(Collector):
    def __init__(self, heartbeat: Heartbeat) -> None:
        self._heartbeat = heartbeat

    def collect(self) -> Iterator[Metric]:
        beat = self._heartbeat
        for name, help_, count in (
            ("sequences", "Sequences embedded.", beat.sequences_done),
            ("residues", "Residues embedded.", beat.residues_done),
            ("packs", "Forward passes.", beat.packs),
            ("tokens", "Tokens in forward passes.", beat.tokens),
            ("shards", "Shards committed.", beat.shards_done),
            ("model_loads", "Models loaded, in all processes.", beat.model_loads),
            ("model_switches", "Changes from one model to another.", beat.model_switches),
            ("packs_split", "Packs that did not fit into memory.", beat.packs_split),
            ("process_restarts", "Processes that died and were replaced.", beat.process_restarts),
            ("waiting_seconds", "Time that devices waited for packs.", beat.waiting_seconds),
        ):
            counter = CounterMetricFamily(f"esmflow_{name}", help_, labels=["job"])
            counter.add_metric([beat.job], count)
            yield counter
        for name, help_, value in (
            ("queue_depth", "Shards that no process has begun.", beat.queue_depth),
            ("memory_bytes", "Peak memory of the largest process.", beat.memory_bytes),
            ("updated_timestamp_seconds", "When the worker wrote this.", beat.updated),
        ):
            gauge = GaugeMetricFamily(f"esmflow_{name}", help_, labels=["job"])
            gauge.add_metric([beat.job], value)
            yield gauge
        state = GaugeMetricFamily("esmflow_state", "1 for the state that the worker is in.", labels=["job", "state"])
        for name in STATES:
            state.add_metric([beat.job, name], name == beat.state)
        yield state
        utilisation = GaugeMetricFamily("esmflow_gpu_utilisation", "GPU utilisation.", labels=["job", "gpu"])
        memory = GaugeMetricFamily("esmflow_gpu_memory_bytes", "GPU memory bytes.", labels=["job", "gpu"])
        for number, gpu in enumerate(beat.gpus):
            utilisation.add_metric([beat.job, str(number)], gpu.utilisation)
            memory.add_metric([beat.job, str(number)], gpu.memory_bytes)
        yield utilisation
        yield memory

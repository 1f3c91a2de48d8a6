"""The worker of a job: a pool of processes, through which its shards go into the store, and a receipt at the end."""

import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from esmflow import __version__, files
from esmflow.descriptor import Descriptor
from esmflow.errors import EsmflowError, IncompleteError
from esmflow.jobs import Job, Shard, read_shard
from esmflow.progress import WorkProgress
from esmflow.store.store import Space, Store, commit, merge, open_file, reading
from esmflow.worker.heartbeat import Health, Heartbeat
from esmflow.worker.messages import EmbedShard, Model, StartServer
from esmflow.worker.pool import ProcessDiedError, WorkerPool

#: Seconds that shards in hand get when a signal asks for the end: schedulers kill soon after it.
GRACE = 5.0
#: Seconds between two looks at signals and the clock.
_TICK = 0.25

log = logging.getLogger(__name__)


class Stop:
    """Whether a signal has asked for the end. The first lets shards in hand finish, a second ends at once."""

    def __init__(self) -> None:
        self.asked = False

    def listen(self) -> None:
        """Answer SIGTERM, SIGINT and SIGUSR1 from now on."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._answer)

    def _answer(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


@dataclass(eq=False)
class Part:
    """Rows of a shard that go through a process together: all of them, or fewer if those kill it."""

    shard: Shard
    first: int
    stop: int
    target: Path
    whole: "Part | None" = None
    """What it is a half of."""
    halves: "tuple[Part, Part] | None" = None

    @property
    def cost(self) -> float:
        """FLOPs, about."""
        return self.shard.cost * (self.stop - self.first) / self.shard.sequences


class Worker:
    """A job's way through its shards. Those that the store has when it begins are passed over.

    attention: kernels of models that are not to have the best that works. seconds: how long the allocation lasts; a
    shard that would not be done in time is not begun. clock: monotonic seconds.
    """

    def __init__(
        self,
        job: Job,
        store: Store,
        health: Health,
        attention: dict[str, str],
        *,
        seconds: float = float("inf"),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._job, self._store, self._health, self._clock = job, store, health, clock
        self._start = clock()
        # A quarter, and at most a minute, is left for what comes before the first shard and after the last.
        self._deadline = self._start + seconds - min(60.0, seconds / 4)
        self._models = {
            name: Model(Descriptor.load(Path(model.descriptor)), model.precision, attention.get(name, "auto"))
            for name, model in job.models.items()
        }
        self.pending = [shard for shard in job.shards if not store.has(self._space(shard), shard.name)]
        self._computed: set[str] = set()
        self._done: dict[str, float] = defaultdict(int)
        self._figures: dict[str, float] = defaultdict(int)
        self._processes: dict[int, dict[str, int]] = {}
        self._uses: dict[str, dict[str, Any]] = {}
        self._in_hand: dict[Path, dict[str, Any]] = {}
        self._changed = threading.Event()
        self._spans: dict[int, tuple[float, float]] = {}
        self._first = self._start
        sequences = sum(shard.sequences for shard in self.pending)
        residues = sum(shard.residues for shard in self.pending)
        cost = sum(shard.cost for shard in self.pending)
        self._progress = WorkProgress(log, sequences, residues, cost)
        health.update("starting", shards=len(self.pending), sequences=sequences, residues=residues, cost=cost)

    def take_report(self, report: dict[str, Any]) -> None:
        """Take what a process of the pool tells: what it has in hand, how far it is with it, and if it is computed."""
        if self._first == self._start:
            self._first = self._clock()
        self._in_hand[report["target"]] = report
        if report["computed"]:
            self._changed.set()

    def embed(self, pool: WorkerPool, stop: Stop) -> None:
        """Have the pool embed and commit the pending shards.

        Raises IncompleteError if a signal or the end of the allocation came first, and what a shard's own job raised,
        once all that can be done without it is done.
        """
        waiting = [Part(shard, 0, shard.sequences, self._path(shard)) for shard in self.pending]
        running: dict[Future[dict[str, Any]], Part] = {}
        failed: EsmflowError | None = None
        self._beat(pool, "ready", len(waiting))
        while waiting or running:
            if stop.asked or self._clock() >= self._deadline:
                break
            while self._computing(running.values()) < len(pool.processes) and (part := self._next(waiting)):
                waiting.remove(part)
                future = pool.submit(self._task(part))
                future.add_done_callback(lambda _: self._changed.set())
                running[future] = part
            if not running:
                break
            self._changed.wait(_TICK)
            self._changed.clear()
            for future in [future for future in running if future.done()]:
                part = running.pop(future)
                self._in_hand.pop(part.target, None)
                try:
                    self._take(part, future.result())
                except ProcessDiedError as error:
                    waiting[:0] = self._divide(part, str(error))
                except EsmflowError as error:
                    log.warning("the shards of model %s are left: %s", part.shard.model, error)
                    failed = failed or error
                    waiting = [other for other in waiting if other.shard.model != part.shard.model]
            self._beat(pool, "busy", len(waiting))
        if waiting or running:
            self._beat(pool, "draining", len(waiting))
            for future in wait(running, GRACE if stop.asked else max(self._deadline - self._clock(), 0)).done:
                self._take(running.pop(future), future.result())
            # What is not done by now is lost.
            self._in_hand.clear()
            self._beat(pool, "draining", len(waiting))
            left = len(self.pending) - int(self._done["shards"])
            cause = "interrupted" if stop.asked else "the allocation ends before another shard would be done"
            if left:
                raise IncompleteError(
                    f"{cause}: {self._done['shards']:.0f} of {len(self.pending)} shards were committed; "
                    "run the same command again to go on"
                )
        if failed:
            raise failed

    def _computing(self, running: Iterable[Part]) -> int:
        """How many of the parts are more than to be written."""
        return sum(not self._in_hand.get(part.target, {}).get("computed") for part in running)

    def _next(self, waiting: list[Part]) -> Part | None:
        """The first that will be done in time, at the rate of those before."""
        left = self._deadline - self._clock()
        rate = self._done["cost"] / self._done["seconds"] if self._done["seconds"] else float("inf")
        return next((part for part in waiting if part.cost / rate <= left), None)

    def _task(self, part: Part) -> EmbedShard:
        shard = part.shard
        return EmbedShard(
            self._models[shard.model],
            Path(shard.file),
            part.first,
            part.stop,
            shard.treatment,
            shard.outputs,
            part.target,
        )

    def _take(self, part: Part, result: dict[str, Any]) -> None:
        """Count what a process has done, and go on to the whole if that was the last half."""
        now, busy = self._clock(), result["seconds"] + result["loading_seconds"]
        self._spans[result["pid"]] = self._spans.get(result["pid"], (now - busy, now))[0], now
        _add(self._done, {"seconds": result["seconds"], "busy": busy, "cost": part.cost})
        _add(self._figures, result["figures"])
        self._processes[result["pid"]] = result["process"]
        use = self._uses.setdefault(
            part.shard.model,
            result["model"] | {"self_check": result["self_check"], "flops": 0.0, "computing_seconds": 0.0},
        )
        _add(use, {"flops": part.cost, "computing_seconds": result["seconds"]})
        check = result["self_check"]
        use["self_check"] = {
            "sequences": max(use["self_check"]["sequences"], check["sequences"]),
            "largest_difference": max(use["self_check"]["largest_difference"], check["largest_difference"]),
            "least_cosine": min(use["self_check"]["least_cosine"], check["least_cosine"]),
        }
        self._committed(part)

    def _committed(self, part: Part) -> None:
        whole = part.whole
        if whole is None:
            shard = part.shard
            self._computed.add(shard.name)
            done = {"shards": 1, "sequences": shard.sequences, "residues": shard.residues, "committed": shard.cost}
            _add(self._done, done)
            log.info("shard %s committed: %s sequences", shard.name, f"{shard.sequences:,}")
        elif whole.halves and all(half.target.exists() for half in whole.halves):
            merge(whole.target, [half.target for half in whole.halves])
            self._committed(whole)

    def _divide(self, part: Part, cause: str) -> list[Part]:
        """The halves of what kills its process; a single sequence is skipped instead."""
        shard = part.shard
        if part.stop - part.first == 1:
            log.warning("shard %s: sequence %d is skipped: %s", shard.name, part.first, cause)
            self._skip(part, cause)
            return []
        middle = (part.first + part.stop) // 2
        log.warning("shard %s: sequences %d to %d go on by halves: %s", shard.name, part.first, part.stop - 1, cause)
        directory = self._path(shard).parent
        halves = [
            Part(shard, first, stop, directory / f".{shard.name}.{first}-{stop}.parquet", part)
            for first, stop in ((part.first, middle), (middle, part.stop))
        ]
        part.halves = (halves[0], halves[1])
        return halves

    def _skip(self, part: Part, reason: str) -> None:
        model = self._models[part.shard.model]
        width = model.descriptor.architecture.embed_dim
        keys, _ = read_shard(Path(part.shard.file), part.first, part.stop)
        nothing = {output: [np.zeros(0 if output.ragged else width, np.float32)] for output in part.shard.outputs}
        metadata = {"model": part.shard.model, "weights_sha256": model.descriptor.sha256}
        commit(part.target, keys, [reason], nothing, metadata)
        self._committed(part)

    def _beat(self, pool: WorkerPool, state: str, waiting: int) -> None:
        """Tell the log and the heartbeat how far the job is."""
        hands = list(self._in_hand.values())
        done = {name: self._done[name] + sum(hand[name] for hand in hands) for name in ("sequences", "residues")}
        cost = self._done["committed"] + sum(hand["cost"] for hand in hands)
        self._progress.update(done["sequences"], done["residues"], cost)
        seconds = max(self._clock() - self._start, 1e-9)
        self._health.update(
            state,
            processes=pool.processes,
            busy=[{"model": hand["model"], "shard": hand["target"].stem} for hand in hands],
            shards_done=self._done["shards"],
            sequences_done=done["sequences"],
            residues_done=done["residues"],
            cost_done=cost,
            residues_per_second=round(done["residues"] / seconds, 1),
            packs=self._figures["packs"],
            tokens=self._figures["tokens"],
            packs_split=self._figures["splits"],
            waiting_seconds=round(self._figures["waiting_seconds"], 3),
            model_loads=self._sum("loads"),
            model_switches=self._sum("switches"),
            process_restarts=pool.restarts,
            queue_depth=waiting,
            memory_bytes=self._memory(),
        )

    def _sum(self, figure: str) -> int:
        return sum(process[figure] for process in self._processes.values())

    def _memory(self) -> int:
        return max((process["peak_memory_bytes"] for process in self._processes.values()), default=0)

    def receipt(self, processes: int = 0, restarts: int = 0) -> dict[str, Any]:
        """What the job did, read back from the store."""
        shards, skipped = [], []
        for shard in self._job.shards:
            path = self._path(shard)
            with reading(path), open_file(path) as file:
                table = file.read(["key", "reason"])
            without = table.filter(table["reason"].is_valid()).to_pylist()
            skipped += [{"key": row["key"].hex(), "reason": row["reason"]} for row in without]
            shards.append(
                {
                    "name": shard.name,
                    "file": str(path.relative_to(self._store.root)),
                    "sha256": files.sha256(path),
                    "model": shard.model,
                    "outputs": [str(output) for output in shard.outputs],
                    "sequences": shard.sequences,
                    "residues": shard.residues,
                    "computed": shard.name in self._computed,
                }
            )
        return {
            "job": self._job.name,
            "serves": self._job.serves,
            "sequences": sum(shard.sequences for shard in self._job.shards),
            "sequences_computed": sum(shard.sequences for shard in self.pending),
            "shards": shards,
            "skipped": skipped,
            "models": self._uses,
            "figures": self._totals(processes, restarts),
            "versions": {"esmflow": __version__, "python": sys.version.split()[0]}
            | {package: version(package) for package in ("torch", "numpy", "pyarrow")},
        }

    def _totals(self, processes: int, restarts: int) -> dict[str, Any]:
        seconds = self._clock() - self._start
        in_use = sum(end - begin for begin, end in self._spans.values())
        figures = self._figures
        capacity = figures["pack_capacity"] - figures["last_pack_free"]
        return {
            "seconds": round(seconds, 3),
            "startup_seconds": round(self._first - self._start, 3),
            "computing_seconds": round(self._done["seconds"], 3),
            # Between the first shard and the last of each process.
            "idle_share": round(max(1 - self._done["busy"] / in_use, 0), 4) if in_use else 0,
            "processes": processes,
            "process_restarts": restarts,
            "model_loads": self._sum("loads"),
            "model_switches": self._sum("switches"),
            "peak_memory_bytes": self._memory(),
            "packs": figures["packs"],
            "tokens": figures["tokens"],
            "pack_fill": round(figures["tokens"] / max(capacity, 1), 4),
            "packs_split": figures["splits"],
            "waiting_seconds": round(figures["waiting_seconds"], 3),
            "residues_per_second": round(figures["residues"] / seconds, 1),
        }

    def _space(self, shard: Shard) -> Space:
        model = self._models[shard.model]
        return Space(model.descriptor.sha256, shard.treatment, model.precision)

    def _path(self, shard: Shard) -> Path:
        return self._store.path(self._space(shard), shard.name)


def _add(sums: dict[str, Any], values: Mapping[str, float]) -> None:
    for name, value in values.items():
        sums[name] += value


def work(
    job_file: Path,
    store: Store,
    receipt: Path,
    start: StartServer,
    *,
    processes: int,
    attention: dict[str, str],
    heartbeats: Path,
    seconds: float = float("inf"),
) -> None:
    """Embed the shards of a job that are not in the store, commit each in one step, then write the receipt.

    Raises DataError if weights are not those planned with, DeviceError if a model cannot run here, IncompleteError if
    a signal or the end of the allocation came first.
    """
    stop = Stop()
    stop.listen()
    job = Job.load(job_file)
    log.info(
        "host %s, CUDA_VISIBLE_DEVICES %s", socket.gethostname(), os.environ.get("CUDA_VISIBLE_DEVICES", "not set")
    )
    health = Health(heartbeats, Heartbeat(job.name))
    worker = Worker(job, store, health, attention, seconds=seconds)
    log.info("job %s: %d shards, %d of them to be embedded", job.name, len(job.shards), len(worker.pending))
    used = restarts = 0
    try:
        if worker.pending:
            with WorkerPool(start, processes, on_report=worker.take_report) as pool:
                worker.embed(pool, stop)
                used, restarts = len(pool.processes), pool.restarts
    finally:
        health.update("dead")
    files.write_text(receipt, json.dumps(worker.receipt(used, restarts), indent=1) + "\n")

"""The worker of a job: a pool of processes, through which its shards go into the store, and a receipt at the end."""

import logging
import os
import signal
import socket
import threading
import time
from concurrent.futures import Future, wait
from pathlib import Path
from types import FrameType

from esmflow.errors import EsmflowError, IncompleteError
from esmflow.job import Job
from esmflow.store.quarantine import SetAsideError
from esmflow.store.store import Store
from esmflow.worker.heartbeat import Heart
from esmflow.worker.messages import EmbedShard, ShardDone, ShardProgress
from esmflow.worker.parts import Part, Parts
from esmflow.worker.pool import ProcessDiedError, WorkerPool
from esmflow.worker.start import Start
from esmflow.worker.tally import Tally

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


class Worker:
    """A job's way through its shards. Those that the store has when it begins, from whatever device, are passed over.

    device: `cpu` or `cuda`. seconds: how long the allocation goes on; a shard that would not be done in time is not
    begun. Raises OSError if the store cannot be written.
    """

    def __init__(self, job: Job, store: Store, heart: Heart, device: str, *, seconds: float = float("inf")) -> None:
        self.pending = [shard for shard in job.shards if not store.has(job.spaces(shard), shard.name)]
        spaces = {shard.name: job.space(shard, device) for shard in self.pending}
        self._spaces = set(spaces.values())
        store.require_writable(self._spaces)
        self.tally = Tally(job, self.pending)
        self._store, self._heart = store, heart
        # A quarter, and at most a minute, is left for what comes after the last shard.
        self._deadline = self.tally.start + seconds - min(60.0, seconds / 4)
        tasks = [
            EmbedShard(job.models[shard.model], shard, 0, shard.sequences, store.path(spaces[shard.name], shard.name))
            for shard in self.pending
        ]
        self._parts = Parts(tasks, store)
        self._running: dict[Future[ShardDone], Part] = {}
        self._failed: EsmflowError | None = None
        self._changed = threading.Event()
        heart.beat(self.tally.heartbeat("starting", [], 0, len(tasks)))

    def sweep(self) -> None:
        """Remove what the processes of a pool were writing when they were killed."""
        self._store.sweep(self._spaces)

    def take_report(self, report: ShardProgress) -> None:
        """Take what a process of the pool tells."""
        self.tally.progress(report)
        if report.computed:
            self._changed.set()

    def embed(self, pool: WorkerPool, stop: Stop) -> None:
        """Have the pool embed and commit the pending shards.

        Raises IncompleteError if a signal or the end of the allocation came first, and what a shard's own job raised,
        once all that can be done without it is done.
        """
        self._beat(pool, "ready")
        while not stop.asked and time.monotonic() < self._deadline:
            self._hand_out(pool)
            if not self._running:
                break
            self._changed.wait(_TICK)
            self._changed.clear()
            self._collect()
            self._beat(pool, "busy")
        if self._running or self._parts:
            self._drain(pool, stop)
        if self._failed:
            raise self._failed

    def _hand_out(self, pool: WorkerPool) -> None:
        """Give each process that could compute the first part that will be done in time, at the rate so far."""
        # A pool that has no process left says why when it is given something.
        while self._computing() < max(len(pool.processes), 1):
            part = self._parts.next((self._deadline - time.monotonic()) * self.tally.rate)
            if part is None:
                break
            if self._parts.in_store(part):
                self._commit(part)
                continue
            self.tally.begin(part.task.shard)
            future = pool.submit(part.task, alone=part.deaths > 0)
            future.add_done_callback(lambda _: self._changed.set())
            self._running[future] = part

    def _computing(self) -> int:
        """How many parts in hand are more than to be written."""
        return sum(not self.tally.is_computed(part.task.target) for part in self._running.values())

    def _collect(self) -> None:
        """Take what has come of the parts in hand."""
        for future in [future for future in self._running if future.done()]:
            part = self._running.pop(future)
            self.tally.end(part.task.target)
            try:
                self.tally.add(part.task.model.name, future.result())
                self._commit(part)
            except ProcessDiedError as error:
                if shard := self._parts.died(part, error):
                    self.tally.committed(shard)
            except EsmflowError as error:
                self._failed = self._failed or error
                if isinstance(error, SetAsideError):
                    log.warning("shard %s is left: %s", part.task.shard.name, error)
                else:
                    log.warning("the shards of model %s are left: %s", part.task.model.name, error)
                    self._parts.leave(part.task.model.name)

    def _commit(self, part: Part) -> None:
        if shard := self._parts.committed(part):
            self.tally.committed(shard)

    def _drain(self, pool: WorkerPool, stop: Stop) -> None:
        """Let the parts in hand finish, as long as there is time. Raises IncompleteError if shards are left."""
        self._beat(pool, "draining")
        wait(self._running, GRACE if stop.asked else max(self._deadline - time.monotonic(), 0))
        self._collect()
        # What is not done by now is lost.
        for part in self._running.values():
            self.tally.end(part.task.target)
        self._beat(pool, "draining")
        if self.tally.shards < len(self.pending):
            cause = "interrupted" if stop.asked else "the allocation ends before another shard would be done"
            raise IncompleteError(
                f"{cause}: {self.tally.shards} of {len(self.pending)} shards were committed; "
                "run the same command again to go on"
            )

    def _beat(self, pool: WorkerPool, state: str) -> None:
        self._heart.beat(self.tally.heartbeat(state, pool.processes, pool.restarts, len(self._parts)))


def work(
    job: Job,
    store: Store,
    receipt: Path,
    start: Start,
    *,
    heartbeats: Path,
    seconds: float = float("inf"),
) -> None:
    """Embed the shards of a job that are not in the store, commit each in one step, then write the receipt.

    Raises DataError if weights are not those planned with, DeviceError if a model cannot run here, IncompleteError if
    a signal or the end of the allocation came first.
    """
    stop = Stop()
    stop.listen()
    log.info(
        "host %s, CUDA_VISIBLE_DEVICES %s", socket.gethostname(), os.environ.get("CUDA_VISIBLE_DEVICES", "not set")
    )
    heart = Heart(heartbeats, start.gpus)
    worker = Worker(job, store, heart, start.device, seconds=seconds)
    log.info("job %s: %d shards, %d of them to be embedded", job.name, len(job.shards), len(worker.pending))
    used = restarts = 0
    try:
        if worker.pending:
            with WorkerPool(start, start.processes, on_report=worker.take_report) as pool:
                worker.embed(pool, stop)
                used, restarts = len(pool.processes), pool.restarts
    finally:
        heart.stop()
        worker.sweep()
    worker.tally.receipt(store, used, restarts).save(receipt)

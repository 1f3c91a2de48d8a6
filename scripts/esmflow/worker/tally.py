"""What the shards of a job took and did so far, and what is told of it: its heartbeats and its receipt."""

import logging
import sys
import time
from collections.abc import Collection
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from esmflow import __version__, files
from esmflow.engine.figures import Figures
from esmflow.errors import IncompleteError
from esmflow.heartbeat import Heartbeat, ShardInHand
from esmflow.job import Job, Shard
from esmflow.progress import WorkProgress
from esmflow.receipt import CommittedShard, JobFigures, ModelUse, Receipt, SelfCheck, SkippedSequence
from esmflow.sealed import open_file
from esmflow.store.quarantine import reading
from esmflow.store.store import Store
from esmflow.worker.messages import ProcessFigures, ShardDone, ShardProgress

log = logging.getLogger(__name__)


class Tally:
    """Counts what is told of a job's shards.

    pending: those that the store had not when the job began; only they are counted.
    """

    def __init__(self, job: Job, pending: Collection[Shard]) -> None:
        self._job = job
        self.start = time.monotonic()
        self._first_report: float | None = None
        self._in_hand: dict[Path, ShardProgress] = {}
        self._begun: set[str] = set()
        """Names of the shards that a process was given."""
        self._committed: list[Shard] = []
        self._figures = Figures()
        self._cost = self._computing_seconds = self._busy_seconds = 0.0
        self._processes: dict[int, ProcessFigures] = {}
        self._spans: dict[int, tuple[float, float]] = {}
        """When each process began its first shard and ended its last."""
        self._uses: dict[str, ModelUse] = {}
        self._heartbeat = Heartbeat(
            job.name,
            shards=len(pending),
            sequences=sum(shard.sequences for shard in pending),
            residues=sum(shard.residues for shard in pending),
            cost=sum(shard.cost for shard in pending),
        )
        self._progress = WorkProgress(log, self._heartbeat.sequences, self._heartbeat.residues, self._heartbeat.cost)

    @property
    def shards(self) -> int:
        """How many are committed."""
        return len(self._committed)

    @property
    def rate(self) -> float:
        """FLOPs per second of a process so far; infinite as long as none is known."""
        return self._cost / self._computing_seconds if self._computing_seconds else float("inf")

    def begin(self, shard: Shard) -> None:
        """A process is given a shard, or a part of one."""
        self._begun.add(shard.name)

    def progress(self, report: ShardProgress) -> None:
        """A process tells how far it is."""
        if self._first_report is None:
            self._first_report = time.monotonic()
        self._in_hand[report.target] = report

    def is_computed(self, target: Path) -> bool:
        """Whether what is in hand is only to be written."""
        return target in self._in_hand and self._in_hand[target].computed

    def end(self, target: Path) -> None:
        """Something is no longer in hand, be it done or not."""
        self._in_hand.pop(target, None)

    def add(self, model: str, done: ShardDone) -> None:
        """Count what a process did for a shard of a model, or for a part of one."""
        now, use, pid = time.monotonic(), done.use, done.process.pid
        busy = done.loading_seconds + use.computing_seconds
        self._spans[pid] = self._spans.get(pid, (now - busy, now))[0], now
        self._processes[pid] = done.process
        self._cost += use.flops
        self._computing_seconds += use.computing_seconds
        self._busy_seconds += busy
        self._figures.add(done.figures)
        if before := self._uses.get(model):
            use = replace(
                before,
                self_check=SelfCheck.worst([before.self_check, use.self_check]),
                flops=before.flops + use.flops,
                computing_seconds=before.computing_seconds + use.computing_seconds,
            )
        self._uses[model] = use

    def committed(self, shard: Shard) -> None:
        """A shard is whole in the store."""
        self._committed.append(shard)
        log.info("shard %s committed: %s sequences", shard.name, f"{shard.sequences:,}")

    def heartbeat(self, state: str, processes: list[int], restarts: int, queued: int) -> Heartbeat:
        """What the job is at; it goes to the log as well, now and then."""
        hands = list(self._in_hand.values())
        begun: list[Shard | ShardProgress] = [*self._committed, *hands]
        sequences, residues = sum(part.sequences for part in begun), sum(part.residues for part in begun)
        cost = sum(part.cost for part in begun)
        self._progress.update(sequences, residues, cost)
        seconds = max(time.monotonic() - self.start, 1e-9)
        return replace(
            self._heartbeat,
            state=state,
            processes=processes,
            busy=[ShardInHand(hand.model, hand.target.stem) for hand in hands],
            shards_done=self.shards,
            sequences_done=sequences,
            residues_done=residues,
            cost_done=cost,
            residues_per_second=round(residues / seconds, 1),
            packs=self._figures.packs,
            tokens=self._figures.tokens,
            packs_split=self._figures.splits,
            waiting_seconds=round(self._figures.waiting_seconds, 3),
            model_loads=self._loads,
            model_switches=self._switches,
            process_restarts=restarts,
            queue_depth=queued,
            memory_bytes=self._peak_memory,
        )

    def receipt(self, store: Store, processes: int, restarts: int) -> Receipt:
        """What the job did, read back from the store. Raises IncompleteError if a shard is not there."""
        shards, skipped = [], []
        for shard in self._job.shards:
            spaces = self._job.spaces(shard)
            path = next(iter(store.paths(spaces, shard.name)), store.path(spaces[0], shard.name))
            try:
                with reading(path), open_file(path) as file:
                    table = file.read(["key", "reason"])
                checksum = files.sha256(path)
            except FileNotFoundError as error:
                raise IncompleteError(f"{path}: store file is gone since it was committed; run again") from error
            without = table.filter(table["reason"].is_valid()).to_pylist()
            skipped += [SkippedSequence(row["key"].hex(), row["reason"]) for row in without]
            shards.append(
                CommittedShard(
                    shard.name,
                    str(path.relative_to(store.root)),
                    checksum,
                    shard.model,
                    [str(output) for output in shard.outputs],
                    shard.sequences,
                    shard.residues,
                    computed=shard.name in self._begun,
                )
            )
        versions = {package: version(package) for package in ("torch", "numpy", "pyarrow")}
        return Receipt(
            job=self._job.name,
            serves=self._job.serves,
            sequences=sum(shard.sequences for shard in shards),
            sequences_computed=sum(shard.sequences for shard in shards if shard.computed),
            shards=shards,
            skipped=skipped,
            models=self._uses,
            figures=self._totals(processes, restarts),
            versions={"esmflow": __version__, "python": sys.version.split()[0]} | versions,
        )

    def _totals(self, processes: int, restarts: int) -> JobFigures:
        seconds = time.monotonic() - self.start
        in_use = sum(end - begin for begin, end in self._spans.values())
        return JobFigures(
            seconds=round(seconds, 3),
            startup_seconds=round((self._first_report or self.start) - self.start, 3),
            computing_seconds=round(self._computing_seconds, 3),
            idle_share=round(max(1 - self._busy_seconds / in_use, 0), 4) if in_use else 0.0,
            processes=processes,
            process_restarts=restarts,
            model_loads=self._loads,
            model_switches=self._switches,
            peak_memory_bytes=self._peak_memory,
            packs=self._figures.packs,
            tokens=self._figures.tokens,
            pack_fill=round(self._figures.fill, 4),
            packs_split=self._figures.splits,
            waiting_seconds=round(self._figures.waiting_seconds, 3),
            residues_per_second=round(self._figures.residues / seconds, 1),
        )

    @property
    def _loads(self) -> int:
        return sum(process.loads for process in self._processes.values())

    @property
    def _switches(self) -> int:
        return sum(process.switches for process in self._processes.values())

    @property
    def _peak_memory(self) -> int:
        return max((process.peak_memory_bytes for process in self._processes.values()), default=0)

"""A view of a run in progress, from its plan, heartbeats and receipts alone: no scheduler is asked."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.table import Table

from esmflow.errors import DataError
from esmflow.heartbeat import Heartbeat
from esmflow.progress import duration
from esmflow.results import Results
from esmflow.run_plan import JobForecast, RunPlan

#: Heartbeats that a worker may miss before it is taken for lost.
_MISSED = 6


@dataclass(frozen=True)
class JobView:
    """What is known of a worker job."""

    job: str
    state: str
    """`waiting` (or queued), a live worker's own state, `lost` (its heart has stopped), `stopped` (incomplete, to be
    tried again) or `done`."""
    models: list[str]
    sequences: int
    sequences_done: int
    cost: float
    """FLOPs."""
    cost_done: float
    cost_per_second: float = 0.0
    """Of a live worker."""
    residues_per_second: float = 0.0
    host: str = ""
    seconds_since_heartbeat: float | None = None
    processes: int = 0
    process_restarts: int = 0
    gpu_utilisation: float | None = None

    @property
    def live(self) -> bool:
        """Whether a worker is at it."""
        return self.state not in ("waiting", "lost", "stopped", "done")


@dataclass(frozen=True)
class RunView:
    """What is known of a run."""

    jobs: list[JobView]
    refused: dict[str, str]
    """The samples that are left out, and why."""

    @property
    def states(self) -> dict[str, int]:
        """Jobs by state."""
        names = [job.state for job in self.jobs]
        return {name: names.count(name) for name in dict.fromkeys(names)}

    @property
    def share_done(self) -> float:
        """Of the run's FLOPs."""
        cost = sum(job.cost for job in self.jobs)
        return sum(job.cost_done for job in self.jobs) / cost if cost else 1.0

    @property
    def residues_per_second(self) -> float:
        """Of all live workers together."""
        return sum(job.residues_per_second for job in self.jobs if job.live)

    @property
    def seconds_left(self) -> float | None:
        """At the rate of the live workers; None if there is none yet."""
        rate = sum(job.cost_per_second for job in self.jobs if job.live)
        left = sum(job.cost - job.cost_done for job in self.jobs)
        return left / rate if rate else None

    @property
    def done(self) -> bool:
        """Whether every job is."""
        return all(job.state == "done" for job in self.jobs)

    def summary(self) -> str:
        """One line."""
        left_out = [f"{len(self.refused):,} samples left out"] if self.refused else []
        if not self.jobs:
            return ", ".join(["nothing is to be embedded", *left_out])
        left = self.seconds_left
        return ", ".join(
            [
                f"{self.share_done:.1%} done",
                *(f"{count:,} {state}" for state, count in self.states.items()),
                *([f"{self.residues_per_second:,.0f} residues/s"] if any(job.live for job in self.jobs) else []),
                *([f"{duration(left)} left"] if left is not None and not self.done else []),
                *left_out,
            ]
        )

    def content(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "share_done": self.share_done,
            "states": self.states,
            "residues_per_second": self.residues_per_second,
            "seconds_left": self.seconds_left,
            "jobs": [asdict(job) for job in self.jobs],
            "refused": self.refused,
        }

    def table(self) -> Table:
        """For a terminal: what is wrong first, then what is at work, what waits, what is done."""
        order = {"lost": 0, "stopped": 1, "waiting": 3, "done": 4}
        table = Table(caption=self.summary(), caption_justify="left", box=None, header_style="bold")
        for name in ("job", "state", "models", "host"):
            table.add_column(name, no_wrap=True)
        for name in ("sequences", "done", "residues/s", "GPU", "processes", "heartbeat"):
            table.add_column(name, justify="right", no_wrap=True)
        colours = {"lost": "bold red", "stopped": "yellow", "waiting": "dim", "done": "green"}
        for job in sorted(self.jobs, key=lambda job: order.get(job.state, 2)):
            replaced = f" ({job.process_restarts} replaced)" if job.process_restarts else ""
            beat = job.seconds_since_heartbeat
            table.add_row(
                job.job,
                job.state,
                ", ".join(job.models),
                job.host,
                f"{job.sequences_done:,} / {job.sequences:,}",
                f"{job.cost_done / job.cost:.0%}" if job.cost else "",
                f"{job.residues_per_second:,.0f}" if job.live else "",
                "" if job.gpu_utilisation is None else f"{job.gpu_utilisation:.0%}",
                f"{job.processes}{replaced}" if job.live else "",
                "" if beat is None or job.state == "done" else f"{duration(beat)} ago",
                style=colours.get(job.state, ""),
            )
        return table


def look(results: Results, now: float) -> RunView | None:
    """What a run is at, at that Unix time; None if it has no plan yet. Raises DataError for a damaged plan."""
    try:
        plan = RunPlan.load(results.plan)
    except FileNotFoundError:
        return None
    planned = results.plan.stat().st_mtime
    jobs = [_job(results, name, forecast, planned, now) for name, forecast in plan.jobs.items()]
    return RunView(jobs, plan.refused)


def _job(results: Results, name: str, forecast: JobForecast, planned: float, now: float) -> JobView:
    about = JobView(name, "waiting", forecast.models, forecast.sequences, 0, forecast.cost, 0.0)
    if results.receipt(name).exists():
        return replace(about, state="done", sequences_done=forecast.sequences, cost_done=forecast.cost)
    try:
        beat = Heartbeat.load(results.heartbeat(name))
    except (FileNotFoundError, DataError):
        return about
    # An older heartbeat is of a job that was planned again since.
    if beat.updated < planned:
        return about
    age = max(now - beat.updated, 0.0)
    gpus = [gpu.utilisation for gpu in beat.gpus]
    return replace(
        about,
        state="stopped" if beat.state == "dead" else "lost" if age > _MISSED * beat.interval else beat.state,
        # What earlier attempts committed is no part of this one's work.
        sequences_done=forecast.sequences - beat.sequences + beat.sequences_done,
        cost_done=forecast.cost - beat.cost + beat.cost_done,
        cost_per_second=beat.cost_done / max(beat.updated - beat.started, 1e-9),
        residues_per_second=beat.residues_per_second,
        host=beat.host,
        seconds_since_heartbeat=age,
        processes=len(beat.processes),
        process_restarts=beat.process_restarts,
        gpu_utilisation=sum(gpus) / len(gpus) if gpus else None,
    )

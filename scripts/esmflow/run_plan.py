"""The plan of a run, as `plan.json` tells it to the rules and to those who watch."""

from dataclasses import dataclass, field
from pathlib import Path

from esmflow import files


@dataclass(frozen=True)
class JobForecast:
    """What a worker job is expected to take."""

    models: list[str]
    shards: int
    sequences: int
    cost: float
    """FLOPs."""
    minutes: float
    memory_mb: int
    """Of the host, in MB of 2^20 bytes."""


@dataclass(frozen=True)
class Preflight:
    """What all the jobs will take."""

    jobs: int
    sequences: int
    device: str
    """`cpu` or `cuda`; empty without jobs."""
    device_hours: float
    longest_minutes: float
    measured: bool
    """Whether the times rest on receipts, or on assumed rates."""
    memory_mb: int
    """Host memory of the largest job."""
    weights_bytes: int
    """Of the largest model in float32, without which a CPU job cannot begin."""
    store_bytes: int
    """What the new embeddings add to the store, not compressed."""
    table_bytes: int
    """The tables and residue files that do not exist yet and wait for the jobs."""


@dataclass(frozen=True)
class RunPlan:
    """What is to be done, and what each feature table waits for."""

    preflight: Preflight
    jobs: dict[str, JobForecast]
    tables: dict[str, list[str]]
    """The jobs whose receipts each table or residue file needs; a table is named `sample/model/layer6.mean`."""
    in_parts: list[str]
    """The tables that are so large that they are to be written in parts."""
    refused: dict[str, str] = field(default_factory=dict)
    """The samples that are left out, since a file of theirs cannot be used: why, in a line for each."""
    refused_models: dict[str, str] = field(default_factory=dict)
    """The models that are left out, since their weights cannot be had or used: why, in a line for each."""

    @property
    def left_out(self) -> list[str]:
        """A line for each sample and model that is left out."""
        return [*self.refused.values(), *self.refused_models.values()]

    def save(self, path: Path) -> None:
        """Write the plan as JSON, in one atomic step."""
        files.write_json(path, self)

    @classmethod
    def load(cls, path: Path) -> "RunPlan":
        """Read a plan written by `save`. Raises DataError if it is damaged."""
        return files.read_json(path, cls, f"delete {path.parent} and run again")

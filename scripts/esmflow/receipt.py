"""The receipt: what a worker job did. It is written last, and is the job's output to Snakemake."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from esmflow import files


@dataclass(frozen=True)
class SelfCheck:
    """How far values were from those of the same sequences embedded alone in float32."""

    sequences: int
    largest_difference: float
    """Relative L2 error, the largest of all outputs and sequences."""
    least_cosine: float

    @classmethod
    def worst(cls, checks: Iterable["SelfCheck"]) -> "SelfCheck":
        """The worst of what several found, each of which has looked at so many sequences at least."""
        listed = list(checks)
        return cls(
            max(check.sequences for check in listed),
            max(check.largest_difference for check in listed),
            min(check.least_cosine for check in listed),
        )


@dataclass(frozen=True)
class ModelUse:
    """How a job computed with a model."""

    device: str
    precision: str
    attention: str
    tokens_per_pack: int
    weights_bytes: int
    self_check: SelfCheck
    flops: float
    computing_seconds: float
    kernels: str = "plain"
    """What computed between matrix products and attention."""


@dataclass(frozen=True)
class CommittedShard:
    """A shard of the job, as it lies in the store."""

    name: str
    file: str
    """Relative to the store."""
    sha256: str
    model: str
    outputs: list[str]
    sequences: int
    residues: int
    computed: bool
    """Whether by this job, and not by an earlier or another one."""


@dataclass(frozen=True)
class SkippedSequence:
    """A sequence that has no values."""

    key: str
    """SHA-256 of its residues, in hexadecimal."""
    reason: str


@dataclass(frozen=True)
class JobFigures:
    """What a job took and did, in all."""

    seconds: float
    startup_seconds: float
    computing_seconds: float
    """Of all processes together."""
    idle_share: float
    """Of the time between the first shard and the last of each process."""
    processes: int
    process_restarts: int
    model_loads: int
    model_switches: int
    peak_memory_bytes: int
    """Of the largest process."""
    packs: int
    tokens: int
    pack_fill: float
    packs_split: int
    waiting_seconds: float
    """Time that devices waited for packs to be made."""
    residues_per_second: float


@dataclass(frozen=True)
class Receipt:
    """What a worker job did."""

    job: str
    serves: list[str]
    """The feature tables that need the job, as `sample/model/layer6.mean`."""
    sequences: int
    sequences_computed: int
    """Those of the shards that it computed."""
    shards: list[CommittedShard]
    skipped: list[SkippedSequence]
    models: dict[str, ModelUse]
    """Those that the job computed with."""
    figures: JobFigures
    versions: dict[str, str]

    def save(self, path: Path) -> None:
        """Write the receipt as JSON, in one atomic step."""
        files.write_json(path, self)

    @classmethod
    def load(cls, path: Path) -> "Receipt":
        """Read a receipt written by `save`. Raises DataError if it is damaged."""
        return files.read_json(path, cls, "delete it and run again with --forcerun plan")

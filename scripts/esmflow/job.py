"""A worker job: what the plan writes and the worker reads."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from esmflow import files, sealed
from esmflow.planned_model import PlannedModel, Space
from esmflow.representation import Output
from esmflow.sealed import MalformedError
from esmflow.treatment import Treatment

#: A shard's file: the keys and residues of its sequences, in order of the samples.
SHARD = pa.schema([pa.field("key", pa.binary(32), nullable=False), pa.field("residues", pa.binary(), nullable=False)])


def read_shard(file: Path, first: int, stop: int) -> tuple[pa.Array, list[bytes]]:
    """Keys, binary(32), and residues of the sequences first..stop-1 of a shard's file.

    Raises DamagedError if it is not as the plan wrote it, or has a key that is not of its sequence.
    """
    sealed.check(file)
    table = pq.ParquetFile(file).read(SHARD.names).slice(first, stop - first)
    keys, residues = table["key"].combine_chunks(), table["residues"].to_pylist()
    for key, sequence in zip(keys.to_pylist(), residues, strict=True):
        if hashlib.sha256(sequence).digest() != key:
            raise MalformedError(f"the key {key.hex()} is not that of its sequence")
    return keys, residues


@dataclass(frozen=True)
class Shard:
    """A fixed list of sequences that is embedded and committed as a whole."""

    name: str
    model: str
    file: str
    treatment: Treatment
    outputs: list[Output]
    sequences: int
    residues: int
    cost: float
    """FLOPs."""
    value_bytes: int
    """Bytes of what is computed, as it is stored."""


@dataclass(frozen=True)
class Job:
    """The shards of one worker job: model by model, dearest first."""

    name: str
    models: dict[str, PlannedModel]
    serves: list[str]
    """The feature tables that need this job, as `sample/model/layer6.mean`."""
    shards: list[Shard]

    @property
    def cost(self) -> float:
        """FLOPs of all its shards."""
        return sum(shard.cost for shard in self.shards)

    def space(self, shard: Shard, device: str) -> Space:
        """The part of the store that a shard is committed to from a device, `cpu` or `cuda`."""
        model = self.models[shard.model]
        return replace(model.space(shard.treatment), precision=model.precision_on(device))

    def spaces(self, shard: Shard) -> list[Space]:
        """Those that may have it, from whatever device."""
        return self.models[shard.model].spaces_of(shard.treatment)

    def save(self, path: Path) -> None:
        """Write the job as JSON, in one atomic step."""
        files.write_json(path, self)

    @classmethod
    def load(cls, path: Path) -> "Job":
        """Read a job written by `save`. Raises DataError if it is damaged."""
        return files.read_json(path, cls, "run again with --forcerun plan")

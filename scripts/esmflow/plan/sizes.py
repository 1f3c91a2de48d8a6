"""How work is divided and done: what a user sets of it."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """How work is divided and done; changes no result."""

    target_minutes: float
    max_jobs: int
    gpus_per_job: int
    threads: int
    """CPU threads of a job."""
    tokens_per_pack: int | None
    """None if the worker is to choose."""
    part_bytes: float = math.inf
    """Of vectors, beyond which a feature table is written in parts."""
    mix_models: bool = False
    """Whether a job may have shards of several models."""
    local: bool = False
    """Whether the jobs run on this machine."""

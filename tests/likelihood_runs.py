"""Runs without Snakemake in one process: from FASTA records to the store, with the library's own steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import torch
from esmflow.inputs.catalog import ingest
from esmflow.inputs.masked import write_masked
from esmflow.inputs.samples import Fasta
from esmflow.inputs.variants import read_variants, write_mutants
from esmflow.job import Job
from esmflow.model.fetch import fetch
from esmflow.plan.plan import plan
from esmflow.plan.sizes import Sizes
from esmflow.planned_model import ModelSpec, PlannedModel
from esmflow.results import Results, TableName
from esmflow.store.store import Store
from esmflow.tables.variants import write_variants
from esmflow.worker.messages import EmbedShard
from esmflow.worker.process import Embedder, load_engine
from esmflow.worker.registry import ModelRegistry

CPU = torch.device("cpu")
SAMPLE = "s"


@dataclass(frozen=True)
class Run:
    """A run over one sample in a directory of its own; `weights` are the files of its models."""

    root: Path
    weights: Mapping[str, Path]
    representations: tuple[str, ...]
    long_sequences: str = "window"
    max_length: int = 50
    window_overlap: int = 20
    target_minutes: float = 1e-5
    embedder: Embedder = field(
        default_factory=lambda: Embedder(
            ModelRegistry(CPU, lambda model, precision: load_engine(model, precision, CPU, 2, None)), lambda _: None
        )
    )

    @property
    def results(self) -> Results:
        return Results(self.root / "results")

    @property
    def store(self) -> Store:
        return Store(self.root / "store")

    @cached_property
    def models(self) -> dict[str, PlannedModel]:
        numbers = (self.max_length, self.window_overlap, "fp32")
        return {
            name: PlannedModel(
                ModelSpec(name, (-1,), self.representations, self.long_sequences, *numbers),
                fetch(name, str(path), self.root / "store" / "weights"),
            )
            for name, path in self.weights.items()
        }

    @property
    def model(self) -> PlannedModel:
        [model] = self.models.values()
        return model

    def table(self, stem: str) -> TableName:
        return TableName(SAMPLE, self.model.name, stem)

    def ingest(self, records: Sequence[tuple[str, str]]) -> None:
        """Write the FASTA file and take it in."""
        fasta = self.root / "s.fasta"
        fasta.write_text("".join(f">{name}\n{sequence}\n" for name, sequence in records))
        results = self.results
        ingest(SAMPLE, [Fasta(fasta)], results.catalog(SAMPLE), results.sequences(SAMPLE), fail_on_invalid=False)

    def match(self, lines: Sequence[tuple[str, str]]) -> None:
        """Write a sheet of variants (id, mutant) and set it against the records."""
        sheet, results = self.root / "variants.tsv", self.results
        sheet.write_text("sample\tid\tmutant\n" + "".join(f"{SAMPLE}\t{name}\t{mutant}\n" for name, mutant in lines))
        paths = results.catalog(SAMPLE), results.sequences(SAMPLE), results.mutants(SAMPLE)
        write_mutants(read_variants(sheet, [SAMPLE]), *paths)

    def plan(self) -> list[Job]:
        """List the masked copies and plan."""
        results, mutants = self.results, self.results.mutants(SAMPLE)
        for name, model in self.models.items():
            if model.masks or mutants.exists():
                target, named = results.masked(SAMPLE, name), None if model.masks else mutants
                write_masked(results.sequences(SAMPLE), model.spec, target, named)
        sizes = Sizes(self.target_minutes, 1, 0, 1, None)
        plan(list(self.models.values()), [SAMPLE], results, self.store, sizes, variants=mutants.exists())
        return [Job.load(path) for path in sorted((self.results.plan_directory / "jobs").glob("*.json"))]

    def embed(self, jobs: Sequence[Job]) -> None:
        """Compute and commit all shards."""
        for job in jobs:
            for shard in job.shards:
                target = self.store.path(job.space(shard, "cpu"), shard.name)
                self.embedder.embed(EmbedShard(job.models[shard.model], shard, 0, shard.sequences, target)).result()

    def score(self, lines: Sequence[tuple[str, str]]) -> tuple[pd.DataFrame, list[Job]]:
        """The table of variants of these lines, and the jobs that it took."""
        self.match(lines)
        jobs = self.plan()
        self.embed(jobs)
        copies = {name: self.results.masked(SAMPLE, name) for name in self.models}
        table = self.results.variants(SAMPLE)
        write_variants(self.results.mutants(SAMPLE), list(self.models.values()), copies, self.store, table)
        return pq.read_table(table).to_pandas(), jobs


def copies(jobs: Sequence[Job]) -> int:
    """How many masked copies jobs compute."""
    return sum(
        shard.sequences
        for job in jobs
        for shard in job.shards
        for output in shard.outputs
        if output.representation == "masked"
    )

"""The directory of results: where everything of a run lies."""

import csv
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from esmflow.errors import DataError, passing
from esmflow.representation import REPRESENTATIONS, VARIANTS


@contextmanager
def reading_output(path: Path) -> Iterator[None]:
    """Tell of an output that cannot be read as what it is. It has no seal by which damage could be proven.

    Raises DataError; what the system refuses is raised as it is.
    """
    try:
        yield
    except Exception as error:
        of_system = isinstance(error, FileNotFoundError) or (isinstance(error, OSError) and error.errno is not None)
        if of_system or passing(error):
            raise
        text = str(error).partition("\n")[0] or type(error).__name__
        raise DataError(f"{path}: cannot be read ({text}); if it is damaged, delete it and run again") from error


def read_outcomes(status: Path) -> Counter[tuple[str, str, int]]:
    """How many records of a status file have each (status, reason, length). Raises DataError if it is damaged."""
    # IDs are of any length.
    csv.field_size_limit(sys.maxsize)
    with reading_output(status), status.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t")
        return Counter((row["status"], row["reason"], int(row["length"])) for row in rows)


class TableName(NamedTuple):
    """Something that a run makes of a model's values for a sample, written `sample/model/layer6.mean`."""

    sample: str
    model: str
    file_stem: str
    """Of its output; or that of the variants, of which a sample has one table for all models."""

    def __str__(self) -> str:
        return "/".join(self)

    @classmethod
    def parse(cls, text: str) -> "TableName":
        """The inverse of `str`."""
        return cls(*text.split("/"))


@dataclass(frozen=True)
class Results:
    """The paths of a run's results. Names may be wildcards of Snakemake's, as in `catalog("{sample}")`."""

    root: Path

    def catalog(self, sample: str) -> Path:
        """A row per record."""
        return self.root / "catalog" / f"{sample}.parquet"

    def sequences(self, sample: str) -> Path:
        """Key and residues of each valid record."""
        return self.root / "sequences" / f"{sample}.parquet"

    def mutants(self, sample: str) -> Path:
        """The lines of the sheet of variants that are of the sample, set against its records."""
        return self.root / "mutants" / f"{sample}.parquet"

    def masked(self, sample: str, model: str) -> Path:
        """The masked copies of the sample's sequences that a model is to see."""
        return self.root / "masked" / sample / f"{model}.parquet"

    def descriptor(self, model: str) -> Path:
        """What the model's weights are."""
        return self.root / "models" / f"{model}.json"

    @property
    def plan_directory(self) -> Path:
        """The plan, its jobs and shards: one output."""
        return self.root / "plan"

    @property
    def plan(self) -> Path:
        """The plan itself."""
        return self.plan_directory / "plan.json"

    def job(self, job: str) -> Path:
        """What a worker job is to do."""
        return self.plan_directory / "jobs" / f"{job}.json"

    def shard(self, shard: str) -> Path:
        """Key and residues of each sequence of a shard."""
        return self.plan_directory / "shards" / f"{shard}.parquet"

    @property
    def receipts(self) -> Path:
        """The directory of all receipts."""
        return self.root / "receipts"

    def receipt(self, job: str) -> Path:
        """What a worker job did."""
        return self.receipts / f"{job}.json"

    @property
    def heartbeats(self) -> Path:
        """The directory of all heartbeats."""
        return self.root / "heartbeats"

    def heartbeat(self, job: str) -> Path:
        """What a worker job is at."""
        return self.heartbeats / f"{job}.json"

    def metrics(self, job: str) -> Path:
        """The same for Prometheus."""
        return self.heartbeat(job).with_suffix(".prom")

    def table(self, name: TableName) -> Path:
        """A feature table that is one file."""
        return self.root / "features" / f"{name}.parquet"

    def table_parts(self, name: TableName) -> Path:
        """A feature table that is a directory of files."""
        return self.root / "features" / f"{name}.parts"

    def table_files(self, name: TableName) -> list[Path]:
        """The files of a feature table that was written, in order."""
        table = self.table(name)
        return [table] if table.exists() else sorted(self.table_parts(name).glob("part-*.parquet"))

    def made(self, name: TableName) -> Path:
        """Where what has that name lies, if it is one file."""
        if name.file_stem == VARIANTS:
            return self.variants(name.sample)
        places = {"features": self.table, "residues": self.residues, "likelihoods": self.likelihoods}
        return places[REPRESENTATIONS[name.file_stem.rpartition(".")[2]].table](name)

    def tables(self, sample: str) -> list[Path]:
        """The feature tables of a sample that were written, files and directories, sorted."""
        return sorted((self.root / "features" / sample).glob("*/layer*"))

    def contigs(self, name: TableName) -> Path:
        """The vectors of each contig's fragments, pooled, of a feature table."""
        return self.root / "contigs" / f"{name}.parquet"

    def residues(self, name: TableName) -> Path:
        """A residue file."""
        return self.root / "residues" / f"{name}.h5"

    def likelihoods(self, name: TableName) -> Path:
        """Perplexity and entropy of each record, by a model."""
        return self.root / "likelihoods" / name.sample / f"{name.model}.parquet"

    def variants(self, sample: str) -> Path:
        """The scores of the variants."""
        return self.root / "variants" / f"{sample}.parquet"

    def proteingym(self, sample: str) -> Path:
        """The directory of the same in ProteinGym's layout."""
        return self.root / "variants" / f"{sample}.proteingym"

    def status(self, sample: str) -> Path:
        """What became of each record."""
        return self.root / "status" / f"{sample}.tsv"

    def samples_with_status(self) -> list[str]:
        """The samples whose status file was written, sorted."""
        pattern = self.status("*")
        return sorted(path.stem for path in pattern.parent.glob(pattern.name))

    def exports(self, sample: str, model: str | None = None) -> Path:
        """The directory of a sample's exports of a model, or of those that are of no model."""
        return self.root / "exports" / sample / (model or "")

    def refused(self, target: str) -> Path:
        """What a run with samples that were refused asks for last, for a target. It is never made."""
        return self.root / "refused" / target

    @property
    def report(self) -> Path:
        """The page on the run."""
        return self.root / "report" / "index.html"

    def made_for(self, output: Path) -> Path:
        """A digest of all that decides the content of an output."""
        return self.root / "made_for" / f"{output.relative_to(self.root)}.txt"

    def benchmark(self, name: str) -> Path:
        """What Snakemake measured of a job."""
        return self.root / "benchmarks" / f"{name}.tsv"

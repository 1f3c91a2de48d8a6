"""The plan: what is missing from the store, in shards that are dealt to worker jobs."""

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq

from esmflow import database, files
from esmflow.job import Job, Shard
from esmflow.plan import estimate, preflight
from esmflow.plan.deal import deal_all, make_job
from esmflow.plan.missing import WorkList
from esmflow.plan.shards import cut
from esmflow.plan.sizes import Sizes
from esmflow.planned_model import PlannedModel
from esmflow.receipt import Receipt
from esmflow.refusal import refusal
from esmflow.representation import VARIANTS, Output
from esmflow.results import Results, TableName
from esmflow.run_plan import RunPlan
from esmflow.store.store import Store

log = logging.getLogger(__name__)


class _Table(NamedTuple):
    """A table or residue file of the run."""

    name: TableName
    divisible: bool
    """Whether it may be written in parts."""
    size: int
    """Bytes of its values: of every valid record in a table, of every sequence once in a residue file."""


def plan(
    models: Sequence[PlannedModel],
    samples: Sequence[str],
    results: Results,
    store: Store,
    sizes: Sizes,
    *,
    variants: bool = False,
    refused_models: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write the plan of a run, its jobs and its shards to the directory that `results` has for it.

    variants: whether variants are to be scored, which `results` has for each sample. refused_models: why other models
    are left out, by name.

    For each feature table the plan lists the jobs whose receipts it needs: those of this plan, and those of earlier
    ones that have a receipt, so that a table that gains nothing keeps its inputs. Names are derived from content.
    Samples that were refused have no tables; the plan lists them.
    Raises ConfigError for a layer or length that a model does not have; DataError for a damaged receipt; WriteError or
    DeviceError if it is sure that what is planned does not fit on the disks or into memory; OSError if the store cannot
    be read, or not be written though something is to be embedded.
    """
    for model in models:
        model.check(variants=variants)
    receipts = {path.stem: Receipt.load(path) for path in sorted(results.receipts.glob("[!.]*.json"))}
    rates = {model.name: estimate.rate(receipts.values(), model, sizes.gpus_per_job) for model in models}
    refused = {sample: line for sample in samples if (line := refusal(results.sequences(sample)))}
    for line in (*refused.values(), *refused_models.values()):
        log.warning("left out: %s", line)
    with files.atomic_directory(results.plan_directory) as directory:
        cutter = _Cutter(store, results, directory / "shards", rates, sizes)
        usable = [sample for sample in samples if sample not in refused]
        with database.connect(directory / "plan") as connection:
            work_list = WorkList(connection, {sample: results.sequences(sample) for sample in samples})
            cutter.cut(work_list, [model.unmasked for model in models])
            tables = list(_tables(work_list, models, usable))
            longest = work_list.longest
        if variants and usable:
            _cut_named(cutter, models, usable, results)
            tables += _variant_tables(models, usable, results)
        for model in models:
            if usable and (model.masks or variants):
                _cut_copies(cutter, model, usable, results)
        jobs = cutter.jobs(models)
        store.require_writable({job.space(shard, rates[shard.model].device) for job in jobs for shard in job.shards})
        forecasts = {job.name: preflight.forecast(job, rates, longest, sizes) for job in jobs}
        summary = preflight.sum_up(jobs, list(forecasts.values()), rates, sizes, _new_bytes(tables, jobs, results))
        log.info("%s", preflight.text(summary, store.root, results.root))
        preflight.require_room(summary, store.root, results.root, local=sizes.local)
        for job in jobs:
            job.save(directory / "jobs" / results.job(job.name).name)
        _delete_receipts(receipts, jobs, results)
        in_parts = [str(table.name) for table in tables if table.divisible and table.size > sizes.part_bytes]
        needs = _needs(tables, jobs, receipts)
        run_plan = RunPlan(summary, forecasts, needs, sorted(in_parts), refused, dict(refused_models))
        run_plan.save(directory / results.plan.name)
    log.info("%d shards in %d jobs", sum(len(job.shards) for job in jobs), len(jobs))


class _Cutter:
    """Cuts what models lack of work lists into shards, which are written to a directory."""

    def __init__(
        self, store: Store, results: Results, directory: Path, rates: Mapping[str, estimate.Rate], sizes: Sizes
    ) -> None:
        self._store, self._results, self._directory = store, results, directory
        self._rates, self._sizes = rates, sizes
        self._shards: defaultdict[str, list[Shard]] = defaultdict(list)
        """Of each model."""
        self._samples: dict[str, set[str]] = {}
        """Those that have a sequence in each shard."""
        directory.mkdir()

    def cut(self, work_list: WorkList, models: Iterable[PlannedModel]) -> None:
        for model in models:
            for batch in work_list.batches(model, self._store):
                self._shards[model.name] += cut(
                    work_list,
                    model,
                    batch,
                    self._store,
                    self._results,
                    self._directory,
                    shard_cost=self._rates[model.name].shard_cost(self._sizes.target_minutes),
                )
            self._samples |= work_list.samples_of_shards()

    def jobs(self, models: Sequence[PlannedModel]) -> list[Job]:
        """The jobs that have all shards."""
        hands = deal_all([self._shards[model.name] for model in models], self._rates, self._sizes)
        return [make_job(hand, models, self._samples) for hand in hands]


def _cut_named(cutter: _Cutter, models: Iterable[PlannedModel], samples: Sequence[str], results: Results) -> None:
    """Cut what variants take of the proteins that they name, where it is not asked for of all proteins."""
    sequences = {sample: results.sequences(sample) for sample in samples}
    lacking = [model for model in models if "wt_marginals" not in model.spec.representations]
    with database.connect(results.plan_directory) as connection:
        work_list = WorkList(connection, sequences, [results.mutants(sample) for sample in samples])
        cutter.cut(work_list, [model.asked_for(["wt_marginals"]) for model in lacking])


def _cut_copies(cutter: _Cutter, model: PlannedModel, samples: Sequence[str], results: Results) -> None:
    """Cut the masked copies that a model is to see."""
    with database.connect(results.plan_directory) as connection:
        work_list = WorkList(connection, {sample: results.masked(sample, model.name) for sample in samples})
        cutter.cut(work_list, [model.of_copies])


def _tables(work_list: WorkList, models: Sequence[PlannedModel], samples: Sequence[str]) -> Iterator[_Table]:
    """All that the run is to make of the outputs."""
    for model in models:
        for output in model.outputs:
            for sample in samples:
                name = TableName(sample, model.name, output.file_stem)
                yield _Table(name, output.kind.table == "features", _table_size(work_list, model, output, sample))


def _variant_tables(models: Sequence[PlannedModel], samples: Sequence[str], results: Results) -> Iterator[_Table]:
    """The share of two scores that each model has in the tables of variants."""
    for sample in samples:
        size = 2 * 4 * pq.read_metadata(results.mutants(sample)).num_rows
        for model in models:
            yield _Table(TableName(sample, model.name, VARIANTS), divisible=False, size=size)


def _table_size(work_list: WorkList, model: PlannedModel, output: Output, sample: str) -> int:
    if not output.ragged:
        return work_list.records[sample] * int(model.stored_bytes(output, np.array([1]))[0])
    lengths, counts = work_list.histograms[sample]
    return int(counts @ model.stored_bytes(output, model.spec.kept(lengths)))


def _new_bytes(tables: Iterable[_Table], jobs: Iterable[Job], results: Results) -> int:
    """Bytes of the tables that do not exist yet and wait for the jobs."""
    gaining = set().union(*(job.serves for job in jobs))
    return sum(
        table.size
        for table in tables
        if str(table.name) in gaining and not (results.table_files(table.name) or results.made(table.name).exists())
    )


def _delete_receipts(receipts: dict[str, Receipt], jobs: Iterable[Job], results: Results) -> None:
    """Drop the receipts of jobs that are planned again: they speak of what the store has lost since."""
    for name in {job.name for job in jobs} & receipts.keys():
        results.receipt(name).unlink()
        del receipts[name]


def _needs(tables: Iterable[_Table], jobs: Iterable[Job], receipts: Mapping[str, Receipt]) -> dict[str, list[str]]:
    """The jobs that each table needs, of those that are planned and those that have a receipt."""
    needs: dict[str, list[str]] = {str(table.name): [] for table in tables}
    serves = {job.name: job.serves for job in jobs} | {name: receipt.serves for name, receipt in receipts.items()}
    for job in sorted(serves):
        for table in needs.keys() & set(serves[job]):
            needs[table].append(job)
    return needs

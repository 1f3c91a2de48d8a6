"""The report: one page on what became of each record, what the jobs did, and how the proteins lie among each other.

It is made from the plan, the receipts, the status files and the feature tables, and needs no network to be looked at.
"""

import json
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import jinja2
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from esmflow import __version__, files
from esmflow.planned_model import Descriptor, ModelSpec, PlannedModel
from esmflow.receipt import Receipt, SelfCheck
from esmflow.report.likelihoods import ProteinMarginals, read_marginals, read_perplexities
from esmflow.report.maps import Drawn, Neighbourhood, draw, map_output, neighbours, projections
from esmflow.report.plots import (
    balance_plot,
    fragment,
    lengths_plot,
    marginals_plot,
    perplexity_plot,
    protein_map,
    seconds_plot,
)
from esmflow.representation import Output
from esmflow.results import Results, TableName, read_outcomes
from esmflow.run_plan import RunPlan

#: Jobs in the table, the longest first.
_JOBS = 50
_TEMPLATES = Path(__file__).parent / "templates"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """What became of a sample's records."""

    name: str
    embedded: int
    skipped: dict[str, int]
    """Records by reason."""
    lengths: dict[int, int]
    """Embedded records by residues."""

    @property
    def records(self) -> int:
        """All of them."""
        return self.embedded + sum(self.skipped.values())


@dataclass(frozen=True)
class ModelMaps:
    """A model, and the maps of its proteins."""

    model: PlannedModel
    output: Output | None
    """What the maps show."""
    drawn: Drawn | None
    maps: dict[str, str]
    """HTML of each, by the way of projection, such as `PCA`."""
    neighbours: list[Neighbourhood]


@dataclass(frozen=True)
class ModelLikelihoods:
    """What a model's likelihoods are, as HTML; empty where they are not asked for."""

    model: str
    perplexities: str
    marginals: str
    protein: ProteinMarginals | None
    """Whose marginals they are."""


@dataclass(frozen=True)
class Numerics:
    """What the self-checks of jobs found at worst, of one model computed in one way."""

    model: str
    device: str
    precision: str
    attention: str
    jobs: int
    sequences: int
    worst: SelfCheck


def write_report(
    results: Results, samples: Sequence[str], specs: Sequence[ModelSpec], config: Mapping[str, object], page: Path
) -> None:
    """Write the page. config: what the user configured, to be shown as it is."""
    plan = RunPlan.load(results.plan)
    for line in plan.left_out:
        log.warning("left out: %s", line)
    samples = [sample for sample in samples if sample not in plan.refused]
    outcomes = [read_status(results.status(sample), sample) for sample in samples]
    receipts = [Receipt.load(results.receipt(name)) for name in sorted(set().union(*plan.tables.values()))]
    receipts.sort(key=lambda receipt: -receipt.figures.seconds)
    figures: dict[str, go.Figure] = {"lengths": lengths_plot({sample.name: sample.lengths for sample in outcomes})}
    if receipts:
        figures |= {"seconds": seconds_plot(receipts), "balance": balance_plot(receipts)}
    usable = [spec for spec in specs if spec.name not in plan.refused_models]
    planned = [PlannedModel(spec, Descriptor.load(results.descriptor(spec.name))) for spec in usable]
    models = [_mapped(results, samples, model, number) for number, model in enumerate(planned)]
    likelihoods = [_likelihoods(results, samples, model, number) for number, model in enumerate(planned)]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters["number"] = lambda value: f"{value:,}"
    text = environment.get_template("report.html").render(
        made=datetime.now(UTC).isoformat(" ", "minutes").removesuffix("+00:00"),
        samples=outcomes,
        refused=plan.refused | plan.refused_models,
        receipts=receipts[:_JOBS],
        jobs=len(receipts),
        models=models,
        likelihoods=[shown for shown in likelihoods if shown.perplexities or shown.marginals],
        numerics=_numerics(receipts),
        versions={"esmflow": __version__} | {name: version(name) for name in ("snakemake", "plotly", "numpy")},
        config=json.dumps(config, indent=2, ensure_ascii=False),
        figures={name: fragment(name, figure) for name, figure in figures.items()},
        plotly=get_plotlyjs(),
    )
    files.write_text(page, text)
    log.info("%s: %d samples, %d jobs", page, len(outcomes), len(receipts))


def read_status(status: Path, sample: str) -> Sample:
    """Count the records of a sample's status file."""
    skipped: defaultdict[str, int] = defaultdict(int)
    lengths: defaultdict[int, int] = defaultdict(int)
    for (outcome, reason, length), count in read_outcomes(status).items():
        if outcome == "skipped":
            skipped[reason] += count
        else:
            lengths[length] += count
    by_count = dict(sorted(skipped.items(), key=lambda item: -item[1]))
    return Sample(sample, sum(lengths.values()), by_count, dict(sorted(lengths.items())))


def _mapped(results: Results, samples: Sequence[str], model: PlannedModel, number: int) -> ModelMaps:
    """A model, which has that number on the page, with the maps of what its tables hold."""
    output = map_output(model)
    drawn = None
    if output:
        tables = {sample: TableName(sample, model.name, output.file_stem) for sample in samples}
        drawn = draw({sample: results.table_files(table) for sample, table in tables.items()})
    if not drawn:
        return ModelMaps(model, output, None, {}, [])
    maps = {}
    for kind, project in projections(len(drawn.ids)).items():
        place, (across, up) = project(drawn.vectors)
        maps[kind] = fragment(f"map{number}-{kind.lower()}", protein_map(drawn, place, across, up))
    return ModelMaps(model, output, drawn, maps, neighbours(drawn))


def _likelihoods(results: Results, samples: Sequence[str], model: PlannedModel, number: int) -> ModelLikelihoods:
    """What a model, which has that number on the page, says of residues."""
    perplexities, protein = read_perplexities(results, samples, model), read_marginals(results, samples, model)
    return ModelLikelihoods(
        model.name,
        fragment(f"perplexity{number}", perplexity_plot(perplexities)) if perplexities else "",
        fragment(f"marginals{number}", marginals_plot(protein)) if protein else "",
        protein,
    )


def _numerics(receipts: Sequence[Receipt]) -> list[Numerics]:
    """What the self-checks found at worst, for each model and way of computing it."""
    checks: defaultdict[tuple[str, str, str, str], list[SelfCheck]] = defaultdict(list)
    for receipt in receipts:
        for name, use in receipt.models.items():
            checks[name, use.device.partition(":")[0], use.precision, use.attention].append(use.self_check)
    return [
        Numerics(*key, len(own), sum(check.sequences for check in own), SelfCheck.worst(own))
        for key, own in sorted(checks.items())
    ]

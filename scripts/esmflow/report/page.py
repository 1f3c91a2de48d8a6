"""The report: one page on what became of each record, what the jobs did, and how the proteins lie among each other.

It is made from the plan, the receipts, the status files and the feature tables, and needs no network to be looked at.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from esmflow import __version__, database, files
from esmflow.descriptor import Descriptor
from esmflow.report.maps import draw, map_output, neighbours, projections
from esmflow.report.plots import balance_plot, fragment, lengths_plot, protein_map, seconds_plot
from esmflow.spec import ModelSpec, Output

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


def write_report(
    results: Path, samples: Sequence[str], specs: Sequence[ModelSpec], config: Mapping[str, Any], page: Path
) -> None:
    """Write the page. config: what the user configured, to be shown as it is."""
    plan = json.loads((results / "plan" / "plan.json").read_text(encoding="utf-8"))
    outcomes = read_statuses(results / "status", samples)
    receipts = [
        json.loads((results / "receipts" / f"{name}.json").read_text(encoding="utf-8"))
        for name in sorted(set().union(*plan["tables"].values()))
    ]
    receipts.sort(key=lambda receipt: -receipt["figures"]["seconds"])
    figures: dict[str, go.Figure] = {"lengths": lengths_plot({sample.name: sample.lengths for sample in outcomes})}
    if receipts:
        figures |= {"seconds": seconds_plot(receipts), "balance": balance_plot(receipts)}
    models = []
    for number, spec in enumerate(specs):
        descriptor = Descriptor.load(results / "models" / f"{spec.name}.json")
        output = map_output(spec, descriptor)
        model: dict[str, Any] = {"name": spec.name, "descriptor": descriptor, "output": output, "maps": []}
        if output and (drawn := draw(_tables(results, samples, spec.name, output))):
            for kind, project in projections(len(drawn.ids)).items():
                place, (across, up) = project(drawn.vectors)
                name = f"map{number}-{kind.lower()}"
                figures[name] = protein_map(drawn, place, across, up)
                model["maps"].append((kind, name))
            model |= {"drawn": drawn, "neighbours": neighbours(drawn)}
        models.append(model)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters["number"] = lambda value: f"{value:,}"
    text = environment.get_template("report.html").render(
        made=datetime.now(UTC).isoformat(" ", "minutes").removesuffix("+00:00"),
        samples=outcomes,
        receipts=receipts[:_JOBS],
        jobs=len(receipts),
        models=models,
        numerics=_numerics(receipts),
        versions={"esmflow": __version__} | {name: version(name) for name in ("snakemake", "plotly", "numpy")},
        config=json.dumps(config, indent=2, ensure_ascii=False),
        figures={name: fragment(name, figure) for name, figure in figures.items()},
        plotly=get_plotlyjs(),
    )
    files.write_text(page, text)
    log.info("%s: %d samples, %d jobs, %d plots", page, len(outcomes), len(receipts), len(figures))


def read_statuses(directory: Path, samples: Sequence[str]) -> list[Sample]:
    """Count the records of each sample's status file."""
    result = []
    with database.connect(directory / "report") as connection:
        for sample in samples:
            rows = connection.execute(
                "SELECT status, reason, length, count(*) FROM read_csv($1, delim = '\t', header = true, quote = '\"', "
                "columns = {'id': 'VARCHAR', 'length': 'INTEGER', 'status': 'VARCHAR', 'reason': 'VARCHAR', "
                "'flags': 'VARCHAR'}) GROUP BY ALL ORDER BY ALL",
                [str(directory / f"{sample}.tsv")],
            ).fetchall()
            skipped: dict[str, int] = {}
            for status, reason, _, count in rows:
                if status == "skipped":
                    skipped[reason] = skipped.get(reason, 0) + count
            lengths = {length: count for status, _, length, count in rows if status == "embedded"}
            by_count = dict(sorted(skipped.items(), key=lambda item: -item[1]))
            result.append(Sample(sample, sum(lengths.values()), by_count, lengths))
    return result


def _tables(results: Path, samples: Sequence[str], model: str, output: Output) -> dict[str, list[Path]]:
    """The files of each sample's feature table."""
    tables = {}
    for sample in samples:
        table = results / "features" / sample / model / f"{output.file_stem}.parquet"
        tables[sample] = [table] if table.exists() else sorted(table.with_suffix(".parts").glob("part-*.parquet"))
    return tables


def _numerics(receipts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each model and way of computing it: what the self-checks of its jobs found at worst."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for receipt in receipts:
        for name, use in receipt["models"].items():
            key = name, use["device"].partition(":")[0], use["precision"], use["attention"]
            row = found.setdefault(key, {"jobs": 0, "sequences": 0, "difference": 0.0, "cosine": 1.0})
            row["jobs"] += 1
            row["sequences"] += use["self_check"]["sequences"]
            row["difference"] = max(row["difference"], use["self_check"]["largest_difference"])
            row["cosine"] = min(row["cosine"], use["self_check"]["least_cosine"])
    names = ("model", "device", "precision", "attention")
    return [dict(zip(names, key, strict=True)) | row for key, row in sorted(found.items())]

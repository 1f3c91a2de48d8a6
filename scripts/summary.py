"""Print what became of each sample's records, and where its tables are; or why the sample was refused.

In: the directory of results. Out: a few lines on standard output.
"""

from argparse import Namespace
from collections import Counter
from pathlib import Path

from esmflow import command
from esmflow.errors import ConfigError
from esmflow.results import Results, read_outcomes
from esmflow.run_plan import RunPlan


def main(options: Namespace) -> None:
    results = Results(options.results)
    plan = RunPlan.load(results.plan) if results.plan.exists() else None
    refused, left_out = (plan.refused, plan.left_out) if plan else ({}, [])
    samples = results.samples_with_status()
    if not samples and not left_out:
        raise ConfigError(
            f"{options.results}: has no status files; give the directory that 'results' names, after a run"
        )
    # What lies there of a refused sample is of an earlier run.
    for sample in [sample for sample in samples if sample not in refused]:
        reasons: Counter[str] = Counter()
        for (_, reason, _), count in read_outcomes(results.status(sample)).items():
            reasons[reason] += count
        records, embedded = reasons.total(), reasons.pop("", 0)
        print(f"{sample}: {records:,} records, {embedded:,} embedded, {records - embedded:,} skipped")
        for reason, count in reasons.most_common():
            print(f"    {count:,} {reason}")
        for table in results.tables(sample):
            print(f"    {table}")
    for line in left_out:
        print(f"left out: {line}")


if __name__ == "__main__":
    arguments = command.parser(__doc__)
    arguments.add_argument("results", type=Path)
    command.run(main, arguments)

"""Print what became of each sample's records, and where its tables are.

In: the directory of results. Out: a few lines on standard output.
"""

import csv
from argparse import Namespace
from collections import Counter
from pathlib import Path

from esmflow import command


def main(options: Namespace) -> None:
    for status in sorted((options.results / "status").glob("*.tsv")):
        with status.open(encoding="utf-8", newline="") as file:
            reasons = Counter(row["reason"] for row in csv.DictReader(file, delimiter="\t"))
        records, embedded = reasons.total(), reasons.pop("", 0)
        print(f"{status.stem}: {records:,} records, {embedded:,} embedded, {records - embedded:,} skipped")
        for reason, count in reasons.most_common():
            print(f"    {count:,} {reason}")
        for table in sorted((options.results / "features" / status.stem).glob("*/layer*")):
            print(f"    {table}")


if __name__ == "__main__":
    arguments = command.parser(__doc__)
    arguments.add_argument("results", type=Path)
    command.run(main, arguments)

"""Fail with a line for each sample and model that was refused, since a file of it cannot be used.

In: the plan of a run. Out: nothing; it ends with 65.
"""

import logging
import sys
from argparse import Namespace
from pathlib import Path

from esmflow import command
from esmflow.errors import DataError
from esmflow.results import Results
from esmflow.run_plan import RunPlan


def main(options: Namespace) -> None:
    for line in RunPlan.load(Results(options.results).plan).left_out:
        logging.error("error: %s", line)
    sys.exit(DataError.exit_code)


if __name__ == "__main__":
    arguments = command.parser(__doc__)
    arguments.add_argument("--results", type=Path, required=True, help="the run's directory of results")
    command.run(main, arguments)

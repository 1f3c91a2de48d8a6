"""Write the report: one page (HTML) on a run, to be looked at without a network.

In: the directory of results (plan, receipts, status files, feature tables, descriptors) and the config. Out: the page.
"""

import json
from argparse import Namespace
from pathlib import Path

from esmflow import command
from esmflow.errors import IncompleteError
from esmflow.inputs.samples import read_samples
from esmflow.planned_model import ModelSpec
from esmflow.report.page import write_report
from esmflow.results import Results


def main(options: Namespace) -> None:
    specs = [ModelSpec.of(name, model) for name, model in options.config["models"].items()]
    try:
        write_report(Results(options.results), list(read_samples(options.samples)), specs, options.config, options.page)
    except FileNotFoundError as error:
        raise IncompleteError(f"{error.filename or error}: not there; run the workflow to its end first") from error


if __name__ == "__main__":
    arguments = command.parser(__doc__)
    arguments.add_argument("--results", type=Path, required=True)
    arguments.add_argument("--samples", type=Path, required=True, help="the sample sheet")
    arguments.add_argument("--config", type=json.loads, required=True, help="the config, as JSON")
    arguments.add_argument("--page", type=Path, required=True)
    command.run(main, arguments)

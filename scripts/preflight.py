"""Print what the plan will take. Nothing is embedded.

In: the plan of a run, and the store. Out: a few lines on standard output.
"""

from argparse import Namespace
from pathlib import Path

from esmflow import command
from esmflow.plan.preflight import text
from esmflow.results import Results
from esmflow.run_plan import RunPlan


def main(options: Namespace) -> None:
    plan = RunPlan.load(Results(options.results).plan)
    print(text(plan.preflight, options.store, options.results))
    for line in plan.left_out:
        print(f"left out: {line}")
    print("Only the plan was made; nothing was embedded. The same command without 'preflight' does it.")


if __name__ == "__main__":
    arguments = command.parser(__doc__)
    arguments.add_argument("--results", type=Path, required=True, help="the run's directory of results")
    arguments.add_argument("--store", type=Path, required=True)
    command.run(main, arguments)

"""Print what the plan will take. Nothing is embedded.

In: the directory of a plan, and the store. Out: a few lines on standard output.
"""

import json
from argparse import Namespace
from pathlib import Path

from esmflow import command
from esmflow.plan.preflight import Preflight


def main(options: Namespace) -> None:
    plan = json.loads((options.plan / "plan.json").read_text(encoding="utf-8"))
    print(Preflight(**plan["preflight"]).text(options.store, options.plan.parent))
    print("Only the plan was made; nothing was embedded. The same command without 'preflight' does it.")


if __name__ == "__main__":
    arguments = command.parser(__doc__)
    arguments.add_argument("--plan", type=Path, required=True, help="directory of plan.json")
    arguments.add_argument("--store", type=Path, required=True)
    command.run(main, arguments)

"""Watch a run: its jobs, their states, rates and progress, and the time left.

In: the directory of results, of a run on this machine or on a cluster. Out: a table in the terminal, until all jobs are
done or Ctrl-C is pressed, which leaves the run alone; with --once as it is now, as plain text or JSON.
"""

import json
import sys
import time
from argparse import Namespace
from pathlib import Path

from esmflow import command
from esmflow.errors import ConfigError
from esmflow.results import Results
from esmflow.watch import look
from rich.console import Console
from rich.live import Live

#: Seconds between two looks.
_INTERVAL = 2.0


def main(options: Namespace) -> None:
    if not options.results.is_dir():
        raise ConfigError(f"{options.results}: no such directory; give the 'results' of the config")
    run = look(Results(options.results), time.time())
    if options.once == "json":
        print(json.dumps(run.content() if run else None, indent=1))
    elif options.once:
        # Wide enough for every row to be a line of its own.
        console = Console(width=250, no_color=True, highlight=False, file=sys.stdout)
        console.print(run.table() if run and run.jobs else run.summary() if run else "no plan yet")
    else:
        _follow(Results(options.results))


def _follow(results: Results) -> None:
    with Live(screen=sys.stdout.isatty(), auto_refresh=False) as live:
        while not ((run := look(results, time.time())) and run.done):
            live.update(run.table() if run else "no plan yet", refresh=True)
            time.sleep(_INTERVAL)
    print(run.summary())


if __name__ == "__main__":
    arguments = command.parser(__doc__)
    arguments.add_argument("results", type=Path)
    arguments.add_argument("--once", nargs="?", const="text", choices=["text", "json"], help="print it and end")
    command.run(main, arguments, interrupted="no longer watched; the run itself goes on")

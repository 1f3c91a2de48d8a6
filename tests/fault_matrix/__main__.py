"""Kills, flipped bits and failing calls to the system, drawn at random, against every command of a small run.

By hand at full size: python tests/fault_matrix --kills 200 --flips 300 --calls 400 [--seed N]
It tells how far it is, and prints what was tried and what came of it. Nothing may be lost, doubled, wrong, silent or
left, nor end in a traceback.
"""

import argparse
import importlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from commands import SCRIPTS

#: Records of a run of which the report has no map by UMAP, which takes 5 s to import.
WITHOUT_UMAP = 20


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("kills", 200), ("flips", 300), ("calls", 400), ("seed", 0), ("records", 20)):
        arguments.add_argument(f"--{name}", type=int, default=default)
    options = arguments.parse_args()
    if "LD_PRELOAD" not in os.environ:
        begin_with_failing_calls()
    sys.path.insert(0, str(SCRIPTS))
    # What commands import: they are forked from here, which then takes no time.
    rooms = ("inputs.catalog", "plan.plan", "tables.hdf5", "tables.ordered", "worker.process", "report.page")
    for module in ("command", *rooms):
        importlib.import_module(f"esmflow.{module}")
    if options.records > WITHOUT_UMAP:
        importlib.import_module("umap")
    else:
        sys.modules["umap"] = None  # type: ignore[assignment]
    from calls import calls
    from commands import run_well
    from flips import flips
    from judge import Figures
    from kills import kills

    figures, draw = Figures(), random.Random(options.seed)
    with tempfile.TemporaryDirectory() as directory:
        whole = run_well(Path(directory, "whole"), options.records)
        # SIGTERM ends it early, with the figures so far.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with suppress(KeyboardInterrupt):
            for try_all, count in ((kills, options.kills), (flips, options.flips), (calls, options.calls)):
                try_all(figures, whole, Path(directory), count, draw)
    print(json.dumps(figures.counts, indent=1))
    sys.exit(bool(figures.faults))


def begin_with_failing_calls() -> None:
    """Begin this program anew, with the library that lets calls fail in it and all its children."""
    with tempfile.TemporaryDirectory() as directory:
        library = Path(directory, "failing_calls.so")
        source = Path(__file__).with_name("failing_calls.c")
        subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
        environment = os.environ | {"LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"}
        sys.exit(subprocess.run([sys.executable, *sys.argv], env=environment, check=False).returncode)


if __name__ == "__main__":
    # A shell that starts this in the background has SIGINT ignored, by it and by all that it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main()

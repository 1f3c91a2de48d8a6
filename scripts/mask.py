"""Write the masked copies of a sample's sequences that a model is to see.

In: the sample's file of sequences and, where only their positions are to be masked, its variants. Out: a Parquet file
with a row per copy.
"""

import json
from argparse import Namespace
from pathlib import Path

from esmflow import command
from esmflow.inputs.masked import write_masked
from esmflow.planned_model import ModelSpec


def main(options: Namespace) -> None:
    write_masked(options.sequences, ModelSpec.of(options.model, options.spec), options.copies, options.mutants)


if __name__ == "__main__":
    arguments = command.parser(__doc__)
    arguments.add_argument("--sequences", type=Path, required=True)
    arguments.add_argument("--mutants", type=Path, help="the sample's variants; without them, all positions are masked")
    arguments.add_argument("--model", required=True, help="the model's name in the config")
    arguments.add_argument("--spec", type=json.loads, required=True, help="its config, as JSON")
    arguments.add_argument("--copies", type=Path, required=True)
    command.run(main, arguments)

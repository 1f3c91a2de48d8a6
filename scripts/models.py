"""Tell what weights files are: family, shape, heads, hash and licence. Nothing is computed with them.

In: files, or directories as transformers saves them. Out: tab-separated lines on standard output.
"""

import logging
from argparse import Namespace
from pathlib import Path

from esmflow import command
from esmflow.errors import DataError
from esmflow.model.card import Card, card

COLUMNS = [
    "file",
    "family",
    "layers",
    "embed_dim",
    "heads",
    "ffn_dim",
    "max_residues",
    "language_head",
    "contact_head",
    "dtype",
    "million_parameters",
    "licence",
    "sha256",
]


def main(options: Namespace) -> None:
    print(*COLUMNS, sep="\t")
    refusals = []
    for path in options.weights:
        try:
            print(line(card(path)))
        except DataError as error:
            refusals.append(error)
    for error in refusals[:-1]:
        logging.error("error: %s", error)
    if refusals:
        raise refusals[-1]


def line(row: Card) -> str:
    shape = row.architecture
    values = [
        row.path,
        shape.kind,
        shape.layers,
        shape.embed_dim,
        shape.heads,
        shape.ffn_dim,
        shape.max_residues or "any",
        "yes" if shape.lm_head else "no",
        "yes" if shape.contact_head else "no",
        row.dtype,
        f"{shape.matrix_numbers / 1e6:.1f}",
        row.licence or "unknown",
        row.sha256,
    ]
    return "\t".join(map(str, values))


if __name__ == "__main__":
    arguments = command.parser(__doc__)
    arguments.add_argument("weights", type=Path, nargs="+")
    command.run(main, arguments)

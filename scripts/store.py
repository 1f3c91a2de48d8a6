"""Look into a store and keep it: ls, stats, verify, prune, get and path.

In: the store's directory. Out: tab-separated lines (of get: a line of JSON per vector) on standard output.
"""

import json
import re
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from datetime import UTC, datetime
from pathlib import Path

from esmflow import command
from esmflow.errors import ConfigError
from esmflow.inputs.catalog import keys_of
from esmflow.inputs.fasta import key_of
from esmflow.representation import Output
from esmflow.store import keeping

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def ls(options: Namespace) -> None:
    columns = "used", "bytes", "sequences", "model", "weights", "treatment", "precision", "vectors", "outputs", "file"
    print(*columns, sep="\t")
    for entry in keeping.entries(options.store, options.model):
        print(line(entry))


def stats(options: Namespace) -> None:
    print("model", "weights", "treatment", "precision", "vectors", "output", "files", "sequences", "bytes", sep="\t")
    for row in keeping.totals(keeping.entries(options.store, options.model)):
        print(*row, sep="\t")


def verify(options: Namespace) -> None:
    keeping.verify(options.store)


def prune(options: Namespace) -> None:
    if options.keep_bytes is None and options.older_than is None and options.model is None:
        raise ConfigError("prune: give --keep-bytes, --older-than or --model, or all of the store would go")
    found = keeping.prune(
        options.store,
        keep_bytes=options.keep_bytes,
        older_than_days=options.older_than,
        model=options.model,
        apply=options.apply,
    )
    for entry in found:
        print(line(entry))
    size = sum(entry.bytes for entry in found)
    done = "removed" if options.apply else "would be removed; --apply removes them"
    print(f"{len(found):,} files of {size:,} bytes {done}")


def get(options: Namespace) -> None:
    for key, length in wanted(options):
        for entry, row, reason in keeping.find(options.store, key, model=options.model, output=options.output):
            about = {
                "key": key.hex(),
                "model": entry.model,
                "treatment": str(entry.treatment),
                "precision": entry.precision,
                "vectors": entry.vectors,
            }
            if reason:
                print(json.dumps(about | {"reason": reason}))
                continue
            for output in [options.output] if options.output else sorted(entry.sizes):
                numbers = keeping.values(entry, row, output, length).tolist()
                print(json.dumps(about | {"output": str(output), "embedding": numbers}))


def path(options: Namespace) -> None:
    print("file", "row", "outputs", "reason", sep="\t")
    for key, _ in wanted(options):
        for entry, row, reason in keeping.find(options.store, key, model=options.model, output=options.output):
            print(entry.path, row, ",".join(map(str, sorted(entry.sizes))), reason or "", sep="\t")


def wanted(options: Namespace) -> list[tuple[bytes, int]]:
    """Key and length of the sequences asked for."""
    if options.residues:
        return [key_of(options.residues)]
    if not options.catalog:
        raise ConfigError("--id: give the catalog in which to look it up, --catalog results/catalog/SAMPLE.parquet")
    return keys_of(options.catalog, options.id)


def line(entry: keeping.Entry) -> str:
    fields = [datetime.fromtimestamp(entry.used, UTC).date(), entry.bytes, entry.sequences, entry.model, entry.weights]
    fields += [entry.treatment, entry.precision, entry.vectors, ",".join(map(str, sorted(entry.sizes))), entry.path]
    return "\t".join(map(str, fields))


def size(text: str) -> int:
    """A number of bytes, as in 500G."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)B?", text)
    if not found:
        raise ArgumentTypeError(f"{text!r} is no number of bytes; write it as 500G")
    return int(float(found[1]) * UNITS[found[2]])


def output(text: str) -> Output:
    """An output, as in layer33.mean."""
    try:
        return Output.parse(text)
    except ValueError as error:
        raise ArgumentTypeError(f"{error}; write it as layer33.mean") from error


if __name__ == "__main__":
    arguments = command.parser(__doc__)
    commands = arguments.add_subparsers(required=True)

    def add(does: object, about: str) -> ArgumentParser:
        result = commands.add_parser(does.__name__, help=about, description=about)
        result.add_argument("store", type=Path, help="the store's directory")
        result.set_defaults(does=does)
        return result

    listing = add(ls, "list the files, with the day of their last use")
    statistics = add(stats, "files, sequences and bytes of each output of each model")
    add(verify, "check every byte and value; damaged files go to quarantine, and the exit code is then 65")
    pruning = add(prune, "choose files to be removed, least recently used first")
    pruning.add_argument("--keep-bytes", type=size, help="choose no more than leaves so many bytes, as in 500G")
    pruning.add_argument("--older-than", type=float, metavar="DAYS", help="choose what was not used for so long")
    pruning.add_argument("--apply", action="store_true", help="remove them, not only list them")
    getting = add(get, "print the vectors of a sequence, a line of JSON each")
    finding = add(path, "print which row of which file has a sequence")
    for lookup in (getting, finding):
        which = lookup.add_mutually_exclusive_group(required=True)
        which.add_argument("--id", help="a record's ID")
        which.add_argument("--residues", help="the sequence itself")
        lookup.add_argument("--catalog", type=Path, help="the catalog of the record's sample")
        lookup.add_argument("--output", type=output, help="only this output, as in layer33.mean")
    for narrowed in (listing, statistics, pruning, getting, finding):
        narrowed.add_argument(
            "--model", help="only this model: its name in the config, or the weights as ls shows them"
        )
    command.run(lambda options: options.does(options), arguments)

"""The sample sheet: checked before any job runs, with one line for what is wrong."""

import csv
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from esmflow.errors import ConfigError, passing
from esmflow.inputs.fasta import PRESUMED, Fasta
from esmflow.inputs.kinds import KINDS, genetic_code

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def read_samples(sheet: Path) -> dict[str, list[Fasta]]:
    """The FASTA files of each sample, from a sheet with the columns `sample`, `fasta` and perhaps `kind`, `code`.

    Raises ConfigError for a missing file or column, a name that cannot be part of a path, a kind or code that there is
    not, the same file twice in a sample, and names that differ only in case (their outputs would clash on some file
    systems).
    """
    samples: dict[str, list[Fasta]] = {}
    spelling: dict[str, str] = {}
    seen: set[tuple[str, Path]] = set()
    for where, row in _rows(sheet):
        name = row["sample"]
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"{where}: sample name {name!r} may hold only letters, digits, '.', '_' and '-', begin with a letter "
                "or digit, and have at most 100 characters"
            )
        if spelling.setdefault(name.lower(), name) != name:
            raise ConfigError(
                f"{where}: samples {spelling[name.lower()]} and {name} differ only in case and their outputs would "
                "clash; rename one"
            )
        path = _locate(row["fasta"], sheet.parent)
        if path is None:
            raise ConfigError(
                f"{where}: sample {name}: FASTA {row['fasta']!r} does not exist, here or beside the sheet; "
                "correct its path"
            )
        if (name, path.resolve()) in seen:
            raise ConfigError(f"{where}: sample {name} has {row['fasta']} twice; remove one line")
        seen.add((name, path.resolve()))
        kind = row.get("kind", "").lower() or PRESUMED
        if kind not in KINDS:
            known = " or ".join(name for name in KINDS if name != PRESUMED)
            raise ConfigError(f"{where}: there is no kind {kind!r}; write {known}, or leave it empty")
        try:
            code = genetic_code(kind, row.get("code", ""))
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        samples.setdefault(name, []).append(Fasta(path, kind, code))
    if not samples:
        raise ConfigError(f"{sheet}: no samples; add lines with 'sample' and 'fasta'")
    return samples


def require_contigs(samples: Mapping[str, Iterable[Fasta]], asked: Sequence[str]) -> None:
    """Raise ConfigError if the config asks for what is made of contigs, and no sample has some."""
    if asked and not any(KINDS[file.kind].of_contigs for fastas in samples.values() for file in fastas):
        kinds = " or ".join(name for name, kind in KINDS.items() if kind.of_contigs)
        raise ConfigError(
            f"config: {asked[0]}: this is made of contigs, and no sample has some; write {kinds} in the sheet's column "
            "'kind', or leave it out"
        )


def delimiter_of(header: str) -> str:
    """What stands between the columns of a sheet, told by its header; a tab where there is one column."""
    return next((mark for mark in "\t;," if mark in header), "\t")


def _rows(sheet: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Where each row of a sheet stands, and its values by column; rows without any value are passed over."""
    try:
        with sheet.open(encoding="utf-8-sig", newline="") as file:
            header = next((line for line in file if line.strip()), "")
            file.seek(0)
            reader = csv.reader(file, delimiter=delimiter_of(header), skipinitialspace=True)
            lines = [(reader.line_num, [value.strip(" \t") for value in values]) for values in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise passing(error, sheet) or ConfigError(
            f"{sheet}: sample sheet cannot be read ({error}); correct 'samples' in the config"
        ) from error
    lines = [(line, values) for line, values in lines if any(values)]
    columns = [name.lower() for name in lines[0][1]] if lines else []
    for line, values in lines[1:]:
        where = f"{sheet}: line {line}"
        row = dict(zip(columns, values, strict=False))
        if not row.get("sample") or not row.get("fasta"):
            raise ConfigError(f"{where}: needs the columns 'sample' and 'fasta', tab-separated or, in a CSV, by commas")
        if any(values[len(columns) :]) or len(set(columns)) < len(columns):
            raise ConfigError(f"{where}: its values are not one for each column; give each column one name, and quote")
        if any("\n" in value for column, value in row.items() if column not in ("sample", "fasta")):
            raise ConfigError(f"{where}: a quotation mark is not closed; close or remove it")
        yield where, row


def _locate(text: str, directory: Path) -> Path | None:
    """The file that a path in the sheet means: as it is, or with `~` and `$VAR` filled in; seen from here or there."""
    for name in (text, os.path.expanduser(os.path.expandvars(text))):  # noqa: PTH111 (Path's raises for no such user)
        for path in (Path(name), directory / name):
            if os.path.isfile(path):  # noqa: PTH113 (Path's raises for a name that is too long)
                return path
    return None

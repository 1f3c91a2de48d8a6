"""The sample sheet: checked before any job runs, with one line for what is wrong."""

import csv
import re
from pathlib import Path

from esmflow.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def read_samples(sheet: Path) -> dict[str, list[Path]]:
    """The FASTA files of each sample, from a tab-separated sheet with the columns `sample` and `fasta`.

    Raises ConfigError for a missing file or column, a name that cannot be part of a path, the same file twice in a
    sample, and names that differ only in case (their outputs would clash on some file systems).
    """
    try:
        with sheet.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t")
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{sheet}: sample sheet cannot be read ({error}); correct 'samples' in the config") from error
    samples: dict[str, list[Path]] = {}
    spelling: dict[str, str] = {}
    seen: set[tuple[str, Path]] = set()
    for line, row in rows:
        where = f"{sheet}: line {line}"
        name, fasta = row.get("sample"), row.get("fasta")
        if not name or not fasta:
            raise ConfigError(f"{where}: needs the tab-separated columns 'sample' and 'fasta'")
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
        path = Path(fasta)
        if not path.is_file():
            raise ConfigError(f"{where}: sample {name}: FASTA {fasta!r} does not exist; correct its path")
        if (name, path.resolve()) in seen:
            raise ConfigError(f"{where}: sample {name} has {fasta} twice; remove one line")
        seen.add((name, path.resolve()))
        samples.setdefault(name, []).append(path)
    if not samples:
        raise ConfigError(f"{sheet}: no samples; add lines with 'sample' and 'fasta'")
    return samples

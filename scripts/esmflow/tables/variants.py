"""Tables of variants: what models make of substitutions, a row for each line of the sheet, in its order.

A score is the sum of log p(letter) - log p(residue as it is) over the substitutions (Meier et al. 2021,
doi:10.1101/2021.07.09.450648), read with nothing masked, and with each position masked.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from esmflow import database, files
from esmflow.alphabet import AMINO_ACIDS
from esmflow.errors import IncompleteError
from esmflow.planned_model import PlannedModel
from esmflow.sealed import seal, whole
from esmflow.store.store import Store, metadata_for
from esmflow.tables.located import LocatedRecords
from esmflow.tables.masked import masked_values

_WT, _MASKED = "wt_marginals", "masked_marginals"
#: Substitutions whose marginals lie in memory together.
_TOGETHER = 100_000

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Substitutions:
    """Some of those of a sample's lines, in their order."""

    path: Path
    """Of the file with a row for each line."""
    lines: int
    """How many there are."""
    line: np.ndarray
    """int64 [substitutions]: the line that each is of."""
    position: np.ndarray
    """int64 [substitutions], from 0."""
    letter: np.ndarray
    """int64 [substitutions]: the number of the letter among the 20 amino acids."""

    @classmethod
    def read(cls, path: Path) -> "_Substitutions":
        """All of them; lines that were refused have none."""
        table = pq.read_table(whole(path), columns=["positions", "letters"])
        counts = pc.list_value_length(table["positions"]).to_numpy()
        position, letter = (
            pc.list_flatten(table[name]).to_numpy().astype(np.int64) for name in ("positions", "letters")
        )
        return cls(path, len(table), np.repeat(np.arange(len(table)), counts), position, letter)

    def those(self, chosen: np.ndarray) -> "_Substitutions":
        """Those alone. chosen: bool or int64, an index of numpy's."""
        return replace(self, line=self.line[chosen], position=self.position[chosen], letter=self.letter[chosen])

    def relation(self, connection: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyRelation:
        """target (the number of a substitution), line and position."""
        columns = {"target": np.arange(len(self.line)), "line": self.line, "position": self.position}
        return connection.from_arrow(pa.table(columns)).set_alias("substitutions")

    def sums(self, scores: np.ndarray) -> np.ndarray:
        """The scores of lines from those of substitutions; NaN for lines without any: float64 [lines]."""
        counts = np.bincount(self.line, minlength=self.lines)
        return np.where(counts > 0, np.bincount(self.line, scores, self.lines), np.nan)


def write_variants(
    mutants: Path, models: Sequence[PlannedModel], copies: Mapping[str, Path], store: Store, table: Path
) -> None:
    """Write a sample's table of variants from its lines as they were set against its records.

    Columns: `id`, `mutant`; for each model `{model}.wt_marginals` and `{model}.masked_marginals`, float32; their mean
    over the models of a family of which there are several, such as `mean(ESM-2).wt_marginals`; and `reason` where any
    of them is null. A reason that does not hold for all models names its model. copies: for each model the list of
    the sample's masked copies. Raises IncompleteError if a line has neither all scores nor a reason.
    """
    lines = pq.read_table(whole(mutants), columns=["id", "mutant", "reason"])
    refused = {line: reason for line, reason in enumerate(lines["reason"].to_pylist()) if reason}
    scores: dict[str, np.ndarray] = {}
    reasons: dict[str, dict[int, str]] = {}
    provenance: dict[str, str] = {}
    for model in models:
        with database.connect(table) as connection:
            scored = _Scored(connection, mutants, model, store)
            scores[f"{model.name}.{_WT}"] = scored.unmasked()
            scores[f"{model.name}.{_MASKED}"] = scored.masked(copies[model.name], table)
            reasons[model.name] = scored.reasons | refused
            provenance |= {f"{model.name}.{name}": value for name, value in scored.provenance.items()}
    scores |= _means(models, scores)
    told = _told(reasons)
    columns = {name: pa.array(values.astype(np.float32), from_pandas=True) for name, values in scores.items()}
    unscored = np.any([np.isnan(values) for values in scores.values()], axis=0)
    if neither := sum(line not in told for line in np.flatnonzero(unscored).tolist()):
        raise IncompleteError(
            f"{mutants}: {neither:,} of {len(lines):,} variants have neither all scores nor a reason; "
            "run again with --forcerun plan"
        )
    reason = pa.array([told.get(line) for line in range(len(lines))], pa.string())
    content = pa.table({"id": lines["id"], "mutant": lines["mutant"], **columns, "reason": reason})
    with files.atomic(table) as temporary:
        pq.write_table(content.replace_schema_metadata(metadata_for(provenance)), temporary, compression="zstd")
        seal(temporary)
    log.info("%s variants: %s scored, %s refused", f"{len(lines):,}", f"{len(lines) - len(told):,}", f"{len(told):,}")


class _Scored:
    """What a model makes of a sample's lines."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, mutants: Path, model: PlannedModel, store: Store) -> None:
        """Find the lines' proteins in the store. Raises IncompleteError if one is neither there nor skipped."""
        self._connection, self._mutants, self._model, self._store = connection, mutants, model, store
        [output] = model.asked_for([_WT]).outputs
        self._located = LocatedRecords(connection, mutants, model, output, store)
        self.provenance = self._located.provenance
        """The metadata of the model's scores."""
        self.reasons: dict[int, str] = dict(self._located.skipped.fetchall())
        """Why lines that could be scored are not."""
        lengths = pq.read_table(mutants, columns=["length"])["length"].to_numpy()
        every = _Substitutions.read(mutants)
        kept = model.spec.kept(lengths)[every.line]
        seen = every.position < kept
        for number in np.flatnonzero(~seen).tolist():
            text = f"position {every.position[number] + 1} is beyond the {kept[number]} residues that the model sees"
            self.reasons.setdefault(int(every.line[number]), text)
        self._substitutions = every.those(seen & ~np.isin(every.line, list(self.reasons)))

    def unmasked(self) -> np.ndarray:
        """The lines' scores with nothing masked: float64 [lines]."""
        ours = self._substitutions
        found = ours.relation(self._connection).join(self._located.embedded.set_alias("embedded"), "line = index")
        targets = database.keep(self._connection, found.project("place, target").order("place"))
        scores = np.full(len(ours.line), np.nan)
        for column, rows, numbers in self._located.gather(targets):
            proteins, begins = np.unique(rows, return_index=True)
            for protein, chosen in zip(proteins.tolist(), np.split(numbers, begins[1:]), strict=True):
                marginals = column[protein].values.to_numpy().reshape(-1, len(AMINO_ACIDS))
                scores[chosen] = marginals[ours.position[chosen], ours.letter[chosen]]
        return ours.sums(scores)

    def masked(self, copies: Path, beside: Path) -> np.ndarray:
        """The lines' scores with each position masked: float64 [lines]. copies: the list of masked copies."""
        ours = self._substitutions
        keys = self._connection.read_parquet(database.literal(self._mutants), hive_partitioning=False)
        keyed = ours.relation(self._connection).join(keys.select("index", "key").set_alias("lines"), "line = index")
        scores = np.full(len(ours.line), np.nan)
        with masked_values(self._connection, copies, self._model, self._store, beside) as values:
            listed = values.copies.project("index AS copy, sequence, position AS masked").set_alias("copies")
            found = keyed.join(listed, "key = sequence AND position = masked").project("target, copy").fetchnumpy()
            for first in range(0, len(found["copy"]), _TOGETHER):
                part = slice(first, first + _TOGETHER)
                targets, numbers = found["target"][part], found["copy"][part].astype(np.int64)
                scores[targets] = values.marginals(numbers)[np.arange(len(targets)), ours.letter[targets]]
                for target, number in zip(targets.tolist(), numbers.tolist(), strict=True):
                    if reason := values.reasons.get(number):
                        self.reasons.setdefault(int(ours.line[target]), reason)
        return ours.sums(scores)


def _means(models: Sequence[PlannedModel], scores: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The means over families of which there are several models."""
    families: dict[str, list[str]] = {}
    for model in models:
        families.setdefault(model.architecture.kind, []).append(model.name)
    return {
        f"mean({family}).{name}": np.mean([scores[f"{model}.{name}"] for model in members], axis=0)
        for family, members in families.items()
        if len(members) > 1
        for name in (_WT, _MASKED)
    }


def _told(reasons: Mapping[str, Mapping[int, str]]) -> dict[int, str]:
    """The reason of each line that some model could not score: that of all models, or the first with its model."""
    told = {}
    for line in sorted(set().union(*reasons.values())):
        given = {model: own[line] for model, own in reasons.items() if line in own}
        model, first = next(iter(given.items()))
        told[line] = first if len(given) == len(reasons) and len(set(given.values())) == 1 else f"{model}: {first}"
    return told

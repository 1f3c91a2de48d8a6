"""What the report shows of likelihoods: perplexities of all records, and the marginals of one protein."""

from collections.abc import Sequence
from dataclasses import dataclass

import h5py
import numpy as np
import pyarrow.parquet as pq

from esmflow.planned_model import PlannedModel
from esmflow.results import Results, TableName, reading_output
from esmflow.sealed import whole

#: Residues of a protein that are shown.
_RESIDUES = 600


@dataclass(frozen=True)
class Perplexities:
    """Those of the records of all samples, by a model."""

    masked: bool
    """Whether each residue was masked in turn."""
    samples: dict[str, np.ndarray]
    """float32 [records with one], of each sample."""


@dataclass(frozen=True)
class ProteinMarginals:
    """A protein's marginals, or those of its first residues."""

    sample: str
    id: str
    length: int
    masked: bool
    marginals: np.ndarray
    """float32 [residues, 20]."""


def read_perplexities(results: Results, samples: Sequence[str], model: PlannedModel) -> Perplexities | None:
    """The perplexities with residues masked, where the tables have them, else those without; None without tables."""
    if "likelihoods" not in model.spec.representations:
        return None
    column = "masked_perplexity" if model.masks else "wt_perplexity"
    names = {sample: TableName(sample, model.name, "likelihoods") for sample in samples}
    paths = {sample: whole(results.likelihoods(name)) for sample, name in names.items()}
    tables = {sample: pq.read_table(path, columns=[column]) for sample, path in paths.items()}
    return Perplexities(model.masks, {sample: table[column].drop_null().to_numpy() for sample, table in tables.items()})


def read_marginals(results: Results, samples: Sequence[str], model: PlannedModel) -> ProteinMarginals | None:
    """The marginals of the first record that has some, with residues masked where they are asked for."""
    outputs = [output for output in model.outputs if output.representation.endswith("_marginals")]
    for output in sorted(outputs, key=lambda output: output.representation):
        for sample in samples:
            path = results.residues(TableName(sample, model.name, output.file_stem))
            with reading_output(path), h5py.File(path, locking=False) as file:
                if len(file["id"]):
                    first, stop = file["offsets"][file["sequence"][0] :][:2].tolist()
                    marginals = file["marginals"][first : min(stop, first + _RESIDUES)]
                    masked = output.kind.from_copies
                    return ProteinMarginals(sample, file["id"].asstr()[0], int(file["length"][0]), masked, marginals)
    return None

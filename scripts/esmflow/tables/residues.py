"""Residue files: what grows with a protein's length, unique sequences once, in HDF5."""

import logging
from pathlib import Path

import h5py
import numpy as np

from esmflow import database, files
from esmflow.architecture import Architecture
from esmflow.errors import ConfigError
from esmflow.planned_model import PlannedModel
from esmflow.representation import Output, Ragged
from esmflow.store.store import Store, metadata_for
from esmflow.tables.located import LocatedRecords

_RECORDS = 50_000

log = logging.getLogger(__name__)


def write_residues(catalog: Path, model: PlannedModel, output: Output, store: Store, target: Path) -> None:
    """Write a sample's residue file of a ragged output, sequence by sequence.

    Datasets: `embeddings`, float32 [sum of residues, embed_dim] (for logits the vocabulary); or `entropy` [sum of
    residues], `marginals` [sum of residues, 20], or `contacts`, flat, a map after the other; `offsets`, int64
    [sequences + 1], in rows of these; and for each embedded record in file order `id`, `length` and `sequence`, its
    number in `offsets`. Raises IncompleteError as `features.write_table`
    does, and ConfigError for an output of one vector per protein.
    """
    kind = output.kind
    if not isinstance(kind, Ragged):
        raise ConfigError(
            f"models.{model.name}.representations: {kind.name} is one vector per protein, which a feature table has"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with database.connect(target) as connection, files.atomic(target) as temporary:
        located = LocatedRecords(connection, catalog, model, output, store)
        places = located.embedded.select("place").distinct()
        sequences = database.keep(
            connection, places.project("place, row_number() OVER (ORDER BY place) - 1 AS target").order("place")
        )
        row = _row_shape(kind, model.architecture)
        with h5py.File(temporary, "w") as file:
            data = file.create_dataset(kind.dataset, (0, *row), np.float32, maxshape=(None, *row), chunks=True)
            offsets = [0]
            for column, rows, _ in located.gather(sequences):
                for number in rows.tolist():
                    values = column[number].values.to_numpy().reshape(-1, *row)
                    data.resize(offsets[-1] + len(values), axis=0)
                    data[offsets[-1] :] = values
                    offsets.append(offsets[-1] + len(values))
            file["offsets"] = np.array(offsets, dtype=np.int64)
            columns = {"id": h5py.string_dtype(), "length": np.int32, "sequence": np.int64}
            datasets = {
                name: file.create_dataset(name, (0,), dtype, maxshape=(None,), chunks=True)
                for name, dtype in columns.items()
            }
            records = located.embedded.set_alias("records").join(sequences.set_alias("sequences"), "place")
            records = records.project("index, id, length, target AS sequence").order("index")
            done = 0
            for batch in records.to_arrow_reader(_RECORDS):
                for name, dataset in datasets.items():
                    dataset.resize(done + len(batch), axis=0)
                    dataset[done:] = batch[name].to_numpy(zero_copy_only=False)
                done += len(batch)
            file.attrs.update(metadata_for(located.provenance))
    log.info("%s records, %s sequences", f"{done:,}", f"{len(offsets) - 1:,}")


def _row_shape(kind: Ragged, architecture: Architecture) -> tuple[int, ...]:
    """What each residue has, if that is the same in proteins of any length; else () for numbers laid end to end."""
    shapes = {kind.residue_shape(residues, architecture) for residues in (1, 2)}
    return shapes.pop() if len(shapes) == 1 else ()

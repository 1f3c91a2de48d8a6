"""Residue files: what grows with a protein's length, unique sequences once, in HDF5."""

import logging
from pathlib import Path

import h5py
import numpy as np

from esmflow import database, files
from esmflow.descriptor import LETTERS, Descriptor
from esmflow.spec import ModelSpec, Output
from esmflow.store.store import Store, metadata_for
from esmflow.tables import located

_STORE_ROWS = 16
_RECORDS = 50_000

log = logging.getLogger(__name__)


def write_residues(
    catalog: Path, spec: ModelSpec, descriptor: Descriptor, output: Output, store: Store, target: Path
) -> None:
    """Write a sample's residue file for `per_tok`, `logits` or `contacts`, sequence by sequence.

    Datasets: `embeddings`, float32 [sum of residues, embed_dim] (33 for logits; for contacts `contacts`, flat, a map
    after the other); `offsets`, int64 [sequences + 1], in rows of these; and for each embedded record in file order
    `id`, `length` and `sequence`, its number in `offsets`. Raises IncompleteError as `features.write_table` does.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with database.connect(target) as connection, files.atomic(target) as temporary:
        held = located.locate(connection, catalog, spec, descriptor, output, store)
        located.require_complete(connection, catalog, output, spec)
        connection.execute(
            "CREATE TABLE wanted AS SELECT place, row_number() OVER (ORDER BY place) - 1 AS target FROM "
            "(SELECT DISTINCT place FROM located WHERE place IS NOT NULL AND reason IS NULL) ORDER BY place"
        )
        width = {"per_tok": descriptor.architecture.embed_dim, "logits": LETTERS}.get(output.representation)
        shape = (0, width) if width else (0,)
        with h5py.File(temporary, "w") as file:
            data = file.create_dataset(
                "embeddings" if width else "contacts", shape, np.float32, maxshape=(None, *shape[1:]), chunks=True
            )
            offsets = [0]
            for column, rows, _ in located.gather(connection, held, output, _STORE_ROWS):
                for row in rows.tolist():
                    values = column[row].values.to_numpy().reshape(-1, *shape[1:])
                    data.resize(offsets[-1] + len(values), axis=0)
                    data[offsets[-1] :] = values
                    offsets.append(offsets[-1] + len(values))
            file["offsets"] = np.array(offsets, dtype=np.int64)
            columns = {"id": h5py.string_dtype(), "length": np.int32, "sequence": np.int64}
            records = {
                name: file.create_dataset(name, (0,), kind, maxshape=(None,), chunks=True)
                for name, kind in columns.items()
            }
            reader = connection.sql(
                "SELECT id, length, target AS sequence FROM located JOIN wanted USING (place) "
                "WHERE reason IS NULL ORDER BY index"
            ).to_arrow_reader(_RECORDS)
            done = 0
            for batch in reader:
                for name, dataset in records.items():
                    dataset.resize(done + len(batch), axis=0)
                    dataset[done:] = batch[name].to_numpy(zero_copy_only=False)
                done += len(batch)
            file.attrs.update(metadata_for(located.provenance(spec, descriptor, output, held)))
    log.info("%s records, %s sequences", f"{done:,}", f"{len(offsets) - 1:,}")

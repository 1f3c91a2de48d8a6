"""What a table tells of how its records were computed."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from esmflow.architecture import Architecture
from esmflow.inputs.catalog import ingest
from esmflow.inputs.fasta import key_of
from esmflow.inputs.samples import Fasta
from esmflow.planned_model import Descriptor, ModelSpec, PlannedModel
from esmflow.representation import Output
from esmflow.store.store import Store, commit
from esmflow.tables.features import write_table
from esmflow.treatment import WHOLE

SHAPE = Architecture("ESM-2", 6, 8, 4, 32, token_dropout=True, max_residues=None, lm_head=True, contact_head=True)
MEAN = Output(6, "mean")


def test_a_table_tells_how_many_records_were_computed_in_which_precision_and_by_which_kernels(
    tmp_path: Path,
) -> None:
    proteins = ["MKV", "MKVA", "MKVAA", "MKV"]
    (tmp_path / "a.fa").write_text("".join(f">p{number}\n{protein}\n" for number, protein in enumerate(proteins)))
    ingest("a", [Fasta(tmp_path / "a.fa")], tmp_path / "catalog", tmp_path / "sequences", fail_on_invalid=True)
    spec = ModelSpec("m", (6,), ("mean",), "skip", 1022, 0, "auto")
    model, store = PlannedModel(spec, Descriptor("m", [], [], "ab" * 32, SHAPE)), Store(tmp_path / "store")
    for name, chosen, precision, kernels in (
        ("one", ["MKV"], "fp16", "triton"),
        ("two", ["MKVA", "MKVAA"], "fp32", "plain"),
        ("of_other_samples", ["MWW"], "bf16", "plain"),
    ):
        keys = pa.array([key_of(protein)[0] for protein in chosen], pa.binary(32))
        metadata = {"precision": precision, "attention": "sdpa", "kernels": kernels}
        path = store.path(model.space(WHOLE), name)
        commit(path, keys, [None] * len(chosen), {MEAN: np.zeros((len(chosen), 8), np.float32)}, metadata)
    write_table(tmp_path / "catalog", model, MEAN, store, tmp_path / "table.parquet")
    found = pq.read_schema(tmp_path / "table.parquet").metadata
    assert found[b"esmflow.records_by_precision"] == b"fp16=2,fp32=2"
    assert found[b"esmflow.kernels"] == b"plain,triton"

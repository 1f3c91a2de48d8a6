"""Stores that this user may not read or write: told at once, by whose they are and what mends it."""

import ctypes
import json
import os
import pwd
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import ROOT
from esmflow.architecture import Architecture
from esmflow.inputs.catalog import ingest
from esmflow.inputs.fasta import Fasta
from esmflow.job import Job, Shard
from esmflow.plan.plan import plan
from esmflow.plan.sizes import Sizes
from esmflow.planned_model import Descriptor, ModelSpec, PlannedModel
from esmflow.representation import Output
from esmflow.results import Results
from esmflow.store.store import Store, commit
from esmflow.treatment import WHOLE
from esmflow.worker.heartbeat import Heart
from esmflow.worker.worker import Worker

SHAPE = Architecture("ESM-2", 6, 8, 4, 32, token_dropout=True, max_residues=None, lm_head=True, contact_head=True)
SPEC = ModelSpec("m", (6,), ("mean",), "truncate", 1022, 0, "fp32")
MODEL = PlannedModel(SPEC, Descriptor("m", [], [], "ab" * 32, SHAPE))
MEAN = Output(6, "mean")
SIZES = Sizes(target_minutes=5, max_jobs=1, gpus_per_job=0, threads=1, tokens_per_pack=None, part_bytes=1e9)


def without_the_rights_of_root() -> None:
    """Drop what lets root read and write whatever its mode says (capabilities(7)), for what is executed next."""
    libc = ctypes.CDLL(None, use_errno=True)
    drop_from_bounding_set, dac_override, dac_read_search = 24, 1, 2
    for capability in (dac_override, dac_read_search):
        libc.prctl(drop_from_bounding_set, capability, 0, 0, 0)


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """A sample of one record."""
    made = Results(tmp_path / "results")
    (tmp_path / "a.fasta").write_text(">one\nMKVLW\n")
    ingest("a", [Fasta(tmp_path / "a.fasta")], made.catalog("a"), made.sequences("a"), fail_on_invalid=False)
    MODEL.descriptor.save(made.descriptor("m"))
    return made


def stored(results: Results) -> Path:
    """The store's one file, which has all of the sample."""
    path = Store(results.root.parent / "store").path(MODEL.space(WHOLE), "shard")
    keys = pa.parquet.read_table(results.sequences("a"))["key"].combine_chunks()
    commit(path, keys, [None], {MEAN: [np.ones(8, np.float32)]}, {"precision": "fp32", "attention": "sdpa"})
    return path


@pytest.mark.parametrize("of", ["file", "directory"])
def test_what_a_colleague_s_mode_forbids_to_read_is_told_with_its_owner_and_is_not_taken_as_missing(
    results: Results, of: str
) -> None:
    path = stored(results)
    closed = path if of == "file" else path.parent
    spec = json.dumps({field: getattr(SPEC, field) for field in SPEC.__dataclass_fields__})
    command = [sys.executable, ROOT / "scripts/features.py", "--model", "m", "--spec", spec]
    command += ["--catalog", results.catalog("a"), "--descriptor", results.descriptor("m")]
    command += ["--store", results.root.parent / "store", "--table", results.root / "table.parquet"]
    closed.chmod(0)
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, preexec_fn=without_the_rights_of_root
        )
    finally:
        closed.chmod(0o755)
    assert done.returncode == 65, done.stderr
    owner = pwd.getpwuid(os.geteuid()).pw_name
    told = rf"error: {closed}: cannot be read: it belongs to {owner}, and its mode 0 .* run chmod -R g\+rX {closed}"
    assert re.search(told, done.stderr.splitlines()[-1])
    assert "Traceback" not in done.stderr


def test_a_store_that_cannot_be_written_is_told_before_anything_is_computed(results: Results, tmp_path: Path) -> None:
    (tmp_path / "store").touch()
    with pytest.raises(OSError, match="store"):
        plan([MODEL], ["a"], results, Store(tmp_path / "store"), SIZES)
    assert not results.plan.exists()
    job = Job("j", {"m": MODEL}, [], [Shard("s", "m", "", WHOLE, [MEAN], 1, 5, 1.0, 32)])
    with pytest.raises(OSError, match="store"):
        Worker(job, Store(tmp_path / "store"), Heart(tmp_path / "heartbeats"), "cpu")
    assert not (tmp_path / "heartbeats").exists()


def test_a_store_that_may_only_be_read_does_where_it_has_all(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    path = stored(results)
    monkeypatch.setattr(Store, "require_writable", lambda _, spaces: pytest.fail("written") if spaces else None)
    plan([MODEL], ["a"], results, Store(path.parents[3]), SIZES)
    assert json.loads(results.plan.read_text())["jobs"] == {}

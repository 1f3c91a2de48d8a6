"""Two users of a group on one store: each can read and add to what the other wrote, or is told before it computes."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from esmflow.architecture import Architecture
from esmflow.inputs.catalog import ingest
from esmflow.inputs.fasta import Fasta
from esmflow.job import Job, Shard
from esmflow.planned_model import Descriptor, ModelSpec, PlannedModel
from esmflow.representation import Output
from esmflow.results import Results
from esmflow.store.store import Store
from esmflow.treatment import WHOLE
from workflow import ENVIRONMENT, ROOT, error_line

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be two users")

GROUP, ANN, BEN = 54320, 54321, 54322
SHAPE = Architecture("ESM-2", 6, 8, 4, 32, token_dropout=True, max_residues=None, lm_head=True, contact_head=True)
SPEC = ModelSpec("m", (6,), ("mean",), "truncate", 1022, 0, "fp32")
MODEL = PlannedModel(SPEC, Descriptor("m", [], [], "ab" * 32, SHAPE))
SPEC_TEXT = json.dumps({field: getattr(SPEC, field) for field in SPEC.__dataclass_fields__ if field != "name"})
#: Commits the first sequence of a catalog, as a worker does.
COMMIT = f"""
import sys
from pathlib import Path
import numpy as np
import pyarrow.parquet as pq
from esmflow.representation import Output
from esmflow.store.store import commit
if __name__ == "__main__":
    keys = pq.read_table(sys.argv[1])["key"].combine_chunks()
    keys = keys.slice(len(keys) - 1)
    commit(Path(sys.argv[2]), keys, [None], {{Output(6, "mean"): [np.ones({SHAPE.embed_dim}, np.float32)]}}, {{}})
"""


@dataclass(frozen=True)
class Place:
    """A directory that both users can enter, with a store of their group and results of each."""

    root: Path

    @property
    def store(self) -> Store:
        return Store(self.root / "store")

    def results(self, user: int) -> Results:
        return Results(self.root / str(user))

    def run(
        self, user: int, umask: int, script: Path | str, *arguments: Path | str, processes: int = 0
    ) -> subprocess.CompletedProcess[str]:
        command = [ROOT / "tests/as_user.py", str(user), str(GROUP), f"{umask:o}", str(processes), script, *arguments]
        return subprocess.run(
            [sys.executable, *command],
            capture_output=True,
            text=True,
            check=False,
            env=ENVIRONMENT | {"PYTHONPATH": str(ROOT / "scripts")},
        )

    def commit(self, user: int, umask: int) -> Path:
        """Have a user commit the last sequence of the own sample to the store; its file."""
        path = self.store.path(MODEL.space(WHOLE), f"of{user}")
        done = self.run(user, umask, self.root / "commit.py", self.results(user).sequences("a"), path)
        assert done.returncode == 0, done.stderr
        return path

    def features(self, user: int) -> subprocess.CompletedProcess[str]:
        """Make a user's table of the own sample."""
        results = self.results(user)
        places = ["--catalog", results.catalog("a"), "--descriptor", results.descriptor("m")]
        places += ["--store", self.store.root, "--table", self.table(user)]
        return self.run(user, 0o022, ROOT / "scripts/features.py", "--model", "m", "--spec", SPEC_TEXT, *places)

    def table(self, user: int) -> Path:
        return self.results(user).root / "table.parquet"

    def plan(self, user: int, processes: int = 0) -> subprocess.CompletedProcess[str]:
        """Plan what the store lacks of a user's sample."""
        places = ["--results", self.results(user).root, "--samples", self.root / "samples.tsv"]
        sizes = ["--target-minutes", "1", "--max-jobs", "1", "--gpus-per-job", "0"]
        options = ["--models", f'{{"m": {SPEC_TEXT}}}', *places, "--store", self.store.root, *sizes]
        return self.run(user, 0o022, ROOT / "scripts/plan.py", *options, processes=processes)

    def embed(self, user: int, processes: int = 0) -> subprocess.CompletedProcess[str]:
        """Begin with a shard that the store lacks."""
        root = self.results(user).root
        shard = Shard("s", "m", "", WHOLE, [Output(6, "mean")], 1, 5, 1.0, 32)
        Job("j", {"m": MODEL}, [], [shard]).save(root / "job.json")
        places = ["--job", root / "job.json", "--store", self.store.root, "--receipt", root / "receipt.json"]
        options = [*places, "--heartbeats", root / "heartbeats"]
        return self.run(user, 0o022, ROOT / "scripts/embed.py", *options, processes=processes)


@pytest.fixture
def place() -> Iterator[Place]:
    """Ann's sample has a sequence, Ben's this and one more."""
    # Not below pytest's own, which root alone can enter.
    made = Place(Path(tempfile.mkdtemp(prefix="esmflow-two-users-")))
    made.root.chmod(0o755)
    (made.root / "commit.py").write_text(COMMIT)
    (made.root / "samples.tsv").write_text("sample\tfasta\na\ta.fasta\n")
    for user, proteins in ((ANN, ["MKVLW"]), (BEN, ["MKVLW", "MVVV"])):
        results, fasta = made.results(user), made.root / f"{user}.fasta"
        fasta.write_text("".join(f">p{number}\n{protein}\n" for number, protein in enumerate(proteins)))
        ingest("a", [Fasta(fasta)], results.catalog("a"), results.sequences("a"), fail_on_invalid=False)
        MODEL.descriptor.save(results.descriptor("m"))
        os.chown(results.root, user, GROUP)
    (made.root / "a.fasta").touch()
    made.store.root.mkdir()
    os.chown(made.store.root, 0, GROUP)
    made.store.root.chmod(0o2775)
    yield made
    shutil.rmtree(made.root)


def assert_told_before_anything_is_computed(place: Place, code: int, told: str) -> None:
    before = sorted(place.root.rglob("*"))
    for done in (place.plan(BEN), place.embed(BEN)):
        assert done.returncode == code, done.stderr
        assert told in error_line(done)
    assert [path for path in sorted(place.root.rglob("*")) if path not in before and path.name != "job.json"] == []


def test_with_umask_002_each_reads_what_the_other_wrote_and_adds_to_it(place: Place) -> None:
    place.commit(ANN, 0o002)
    assert "1 records have no layer6.mean" in error_line(place.features(BEN))
    assert place.plan(BEN).returncode == 0
    place.commit(BEN, 0o002)
    for user, records in ((BEN, 2), (ANN, 1)):
        done = place.features(user)
        assert done.returncode == 0, done.stderr
        assert pq.read_metadata(place.table(user)).num_rows == records


def test_with_umask_022_the_other_reads_what_one_wrote_and_is_told_that_nothing_can_be_added(place: Place) -> None:
    committed = place.commit(ANN, 0o022)
    assert_told_before_anything_is_computed(place, 73, f"{committed.parent}")
    shutil.copy2(place.results(ANN).catalog("a"), place.results(BEN).catalog("a"))
    done = place.features(BEN)
    assert done.returncode == 0, done.stderr
    assert pq.read_metadata(place.table(BEN)).num_rows == 1


def test_with_umask_077_the_other_is_told_who_can_open_what_one_wrote(place: Place) -> None:
    place.commit(ANN, 0o077)
    opened = f"have {ANN} run chmod -R g+rX {place.store.root / 'embeddings'}"
    assert_told_before_anything_is_computed(place, 65, opened)
    done = place.features(BEN)
    assert done.returncode == 65
    assert opened in error_line(done)


def test_a_store_that_may_only_be_read_is_told_before_anything_is_computed(place: Place) -> None:
    place.commit(ANN, 0o002)
    for path in (place.store.root, *place.store.root.rglob("*")):
        os.chown(path, 0, 0)
        path.chmod(0o555 if path.is_dir() else 0o444)
    assert_told_before_anything_is_computed(place, 73, str(place.store.root))


@pytest.mark.parametrize("processes", [1, 3])
def test_who_may_have_few_processes_is_told_so_in_one_line(place: Place, processes: int) -> None:
    """As with `ulimit -u`, which does not bind root."""
    planned = place.plan(BEN, processes)
    assert planned.returncode == 75, planned.stderr
    assert "raise the limit (ulimit -u)" in error_line(planned)
    worked = place.embed(BEN, processes)
    assert worked.returncode == 69, worked.stderr
    assert "no process can be started" in error_line(worked)

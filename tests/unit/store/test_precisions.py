"""The store keeps a vector under the precision that it was computed in, and who asks for `auto` takes what is there."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import reference
from esmflow.architecture import Architecture
from esmflow.errors import DataError
from esmflow.inputs.catalog import ingest
from esmflow.inputs.fasta import key_of
from esmflow.inputs.samples import Fasta
from esmflow.job import Job
from esmflow.model import weights
from esmflow.plan.plan import plan
from esmflow.plan.sizes import Sizes
from esmflow.planned_model import Descriptor, ModelSpec, PlannedModel, Space
from esmflow.representation import Output
from esmflow.results import Results
from esmflow.store import keeping
from esmflow.store.store import Store, commit
from esmflow.tables.features import write_table
from esmflow.treatment import WHOLE
from esmflow.worker.heartbeat import Heart
from esmflow.worker.worker import Worker
from workflow import script

PROTEINS = ["MKV", "MKVA", "MKVAA", "MKVAAA"]
MEAN = Output(6, "mean")
SHAPE = Architecture("ESM-2", 6, 8, 4, 32, token_dropout=True, max_residues=None, lm_head=True, contact_head=True)
SIZES = Sizes(target_minutes=5, max_jobs=1, gpus_per_job=0, threads=1, tokens_per_pack=None)


def model_of(precision: str, kind: str = "ESM-2") -> PlannedModel:
    spec = ModelSpec("m", (6,), ("mean",), "skip", 1022, 0, precision)
    return PlannedModel(spec, Descriptor("m", [], [], "ab" * 32, replace(SHAPE, kind=kind)))


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """A sample of a protein each."""
    (tmp_path / "a.fa").write_text("".join(f">p{number}\n{protein}\n" for number, protein in enumerate(PROTEINS)))
    results = Results(tmp_path / "results")
    ingest("a", [Fasta(tmp_path / "a.fa")], results.catalog("a"), results.sequences("a"), fail_on_invalid=True)
    return results


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def put(
    store: Store, space: str, shard: str, proteins: list[str], value: float, reason: str | None = None, **metadata: str
) -> Path:
    """Commit a vector of equal numbers for each protein to what was computed in a precision."""
    path = store.path(Space("ab" * 32, WHOLE, space), shard)
    keys = pa.array([key_of(protein)[0] for protein in proteins], pa.binary(32))
    values = {MEAN: np.full((len(proteins), 8), value, np.float32)}
    commit(path, keys, [reason] * len(proteins), values, {"model": "m", "precision": space} | metadata)
    return path


def planned(model: PlannedModel, results: Results, store: Store) -> list[Job]:
    plan([model], ["a"], results, store, SIZES)
    return [Job.load(path) for path in sorted((results.plan_directory / "jobs").glob("*.json"))]


@pytest.mark.parametrize(
    ("kind", "asked", "taken"),
    [
        ("ESM-2", "auto", {"fp32", "fp16", "auto"}),
        ("ESM-C", "auto", {"fp32", "bf16", "auto"}),
        ("ESM-2", "fp32", {"fp32"}),
        ("ESM-2", "fp16", {"fp16"}),
        ("ESM-2", "bf16", {"bf16"}),
    ],
)
def test_a_plan_takes_what_was_computed_in_a_precision_that_does(
    results: Results, store: Store, kind: str, asked: str, taken: set[str]
) -> None:
    model = model_of(asked, kind)
    found = set()
    for space in ("fp32", "fp16", "bf16", "auto"):
        path = put(store, space, "shard", PROTEINS, 1.0)
        found |= set() if planned(model, results, store) else {space}
        path.unlink()
    assert found == taken


def test_a_plan_of_auto_adds_up_what_several_devices_have_computed(results: Results, store: Store) -> None:
    put(store, "fp32", "one", PROTEINS[:1], 1.0)
    put(store, "fp16", "two", PROTEINS[1:2], 1.0)
    put(store, "auto", "old", PROTEINS[2:3], 1.0)
    [job] = planned(model_of("auto"), results, store)
    assert pq.read_table(job.shards[0].file)["residues"].to_pylist() == [PROTEINS[3].encode()]


def test_a_shard_has_one_name_and_is_passed_over_whatever_device_has_committed_it(
    results: Results, store: Store, tmp_path: Path
) -> None:
    [job] = planned(model_of("auto"), results, store)
    [shard] = job.shards
    places = {device: store.path(job.space(shard, device), shard.name) for device in ("cpu", "cuda")}
    assert {device: path.parent.name.split("-")[1] for device, path in places.items()} == {
        "cpu": "fp32",
        "cuda": "fp16",
    }
    for number, device in enumerate(places):
        assert Worker(job, store, Heart(tmp_path / f"heart{number}"), device).pending == [shard]
    path = put(store, "fp16", shard.name, PROTEINS, 1.0)
    assert path == places["cuda"]
    assert Worker(job, store, Heart(tmp_path / "heart"), "cpu").pending == []


def test_a_table_takes_the_most_exact_vector_and_tells_how_many_are_of_which_precision(
    results: Results, store: Store, tmp_path: Path
) -> None:
    put(store, "fp16", "one", PROTEINS[:3], 16.0)
    put(store, "fp32", "two", PROTEINS[:1], 32.0)
    put(store, "fp32", "short", PROTEINS[1:2], 0.0, "out of memory: 4 residues in one pass")
    put(store, "auto", "old", PROTEINS[2:], 1.0, precision="bf16")
    write_table(results.catalog("a"), model_of("auto"), MEAN, store, tmp_path / "table.parquet")
    table = pq.read_table(tmp_path / "table.parquet")
    assert [vector[0] for vector in table["embedding"].to_pylist()] == [32.0, 16.0, 16.0, 1.0]
    assert table.schema.metadata[b"esmflow.records_by_precision"] == b"bf16=1,fp16=2,fp32=1"


def test_another_attempt_has_another_name_than_one_that_failed_on_another_device(
    results: Results, store: Store
) -> None:
    [first] = planned(model_of("auto"), results, store)
    put(store, "fp16", first.shards[0].name, PROTEINS, 0.0, "out of memory: 4 residues in one pass")
    [second] = planned(model_of("auto"), results, store)
    assert second.shards[0].sequences == len(PROTEINS)
    assert second.shards[0].name != first.shards[0].name


def test_verify_finds_a_file_that_lies_with_another_precision(store: Store) -> None:
    put(store, "fp32", "right", PROTEINS, 1.0)
    put(store, "auto", "old", PROTEINS, 1.0, precision="fp16")
    keeping.verify(store.root)
    wrong = put(store, "fp32", "wrong", PROTEINS, 1.0, precision="fp16")
    with pytest.raises(DataError, match="1 of 3 files"):
        keeping.verify(store.root)
    assert not wrong.exists()


def test_what_auto_computed_on_a_cpu_is_there_for_fp32(results: Results, store: Store, tmp_path: Path) -> None:
    reference.tiny_esm2(tmp_path / "tiny.pt")
    spec = replace(model_of("auto").spec, layers=(3,))
    model = PlannedModel(spec, weights.describe("m", tmp_path / "tiny.pt"))
    [job] = planned(model, results, store)
    arguments = ["--job", str(results.job(job.name)), "--store", str(store.root), "--receipt", "receipt.json"]
    assert script("embed", *arguments, "--heartbeats", "beats", cwd=tmp_path).returncode == 0
    assert not planned(replace(model, spec=replace(spec, precision="fp32")), results, store)
    assert planned(replace(model, spec=replace(spec, precision="fp16")), results, store)

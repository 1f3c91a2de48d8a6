"""What the store gives back: what was committed, whole, or nothing."""

import errno
import random
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from esmflow import database
from esmflow.architecture import Architecture
from esmflow.errors import DataError, IncompleteError, WriteError
from esmflow.inputs.catalog import ingest
from esmflow.inputs.samples import Fasta
from esmflow.job import Job, Shard
from esmflow.planned_model import Descriptor, ModelSpec, PlannedModel
from esmflow.representation import Output
from esmflow.sealed import DamagedError
from esmflow.store.quarantine import reading
from esmflow.store.store import Store, commit
from esmflow.tables.features import write_table
from esmflow.treatment import WHOLE
from esmflow.worker.heartbeat import Heart
from esmflow.worker.worker import Worker
from workflow import FULL_SIZE

RESIDUES = ["M" + "KV" * number for number in range(1, 7)]
OUTPUTS = [Output(0, "mean"), Output(6, "mean")]
SPEC = ModelSpec("m", (6,), ("mean",), "truncate", 1022, 0, "auto")
SHAPE = Architecture("ESM-2", 6, 8, 4, 32, token_dropout=True, max_residues=None, lm_head=True, contact_head=True)
MODEL = PlannedModel(SPEC, Descriptor("m", [], [], "ab" * 32, SHAPE))
SPACE = MODEL.space(WHOLE)


@dataclass(frozen=True)
class Held:
    """A sample whose sequences are all in one store file; the second of them was skipped."""

    root: Path
    keys: list[bytes]
    values: dict[Output, list[np.ndarray]]

    @property
    def store(self) -> Store:
        return Store(self.root / "store")

    @property
    def file(self) -> Path:
        return self.store.path(SPACE, "shard")

    def table(self) -> pa.Table:
        write_table(self.root / "catalog.parquet", MODEL, OUTPUTS[1], self.store, self.root / "table.parquet")
        return pq.read_table(self.root / "table.parquet")


@pytest.fixture
def held(tmp_path: Path) -> Held:
    (tmp_path / "a.fa").write_text("".join(f">p{len(residues)}\n{residues}\n" for residues in RESIDUES))
    ingest("a", [Fasta(tmp_path / "a.fa")], tmp_path / "catalog.parquet", tmp_path / "sequences", fail_on_invalid=False)
    keys = sorted(pq.read_table(tmp_path / "catalog.parquet")["key"].to_pylist())
    draw = np.random.default_rng(0)
    values = {output: [draw.normal(size=8).astype(np.float32) for _ in keys] for output in OUTPUTS}
    made = Held(tmp_path, keys, values)
    commit_all(made, "shard", [None, "not finite", *[None] * (len(keys) - 2)])
    return made


def commit_all(held: Held, shard: str, reasons: list[str | None]) -> None:
    metadata = {"model": "m", "weights_sha256": MODEL.descriptor.sha256, "precision": "fp32", "attention": "sdpa"}
    keys = pa.array(held.keys, pa.binary(32))
    commit(held.store.path(SPACE, shard), keys, reasons, held.values, metadata)


def test_a_flipped_bit_anywhere_in_a_store_file_never_gives_another_table(held: Held) -> None:
    expected, whole = held.table(), held.file.read_bytes()
    assert len(expected) == len(RESIDUES) - 1
    draw = random.Random(3)
    told = 0
    flips = 200 if FULL_SIZE else 80
    for place in draw.sample(range(len(whole)), flips):
        content = bytearray(whole)
        content[place] ^= 1 << draw.randrange(8)
        held.file.write_bytes(content)
        try:
            found = held.table()
        except (DataError, IncompleteError):
            told += 1
        else:
            assert found.equals(expected, check_metadata=True), place
    assert told > flips / 2


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.3, 0.7, 0.999])
def test_a_store_file_cut_short_is_set_aside_and_what_it_held_is_missing(held: Held, kept: float) -> None:
    whole = held.file.read_bytes()
    held.file.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(IncompleteError, match=r"6 records have no layer6\.mean .* --forcerun plan"):
        held.table()
    assert [path.name for path in held.file.parent.iterdir()] == []


def test_a_damaged_page_of_vectors_is_told_and_its_file_set_aside(held: Held) -> None:
    content = bytearray(held.file.read_bytes())
    place = content.index(held.values[OUTPUTS[1]][3].tobytes())
    content[place + 2] ^= 16
    held.file.write_bytes(content)
    with pytest.raises(IncompleteError, match=r"shard\.parquet: .* --forcerun plan"):
        held.table()
    assert not held.file.exists()
    assert next((held.root / "store" / "quarantine").iterdir()).read_bytes() == content


@pytest.mark.parametrize("damage", ["page of vectors", "cut short", "empty"])
def test_a_worker_computes_a_damaged_shard_again(held: Held, damage: str) -> None:
    content = bytearray(held.file.read_bytes())
    place = content.index(held.values[OUTPUTS[1]][3].tobytes())
    content[place + 2] ^= 16
    held.file.write_bytes({"page of vectors": content, "cut short": content[:-1], "empty": b""}[damage])
    commit_all(held, "whole", [None] * len(RESIDUES))
    shards = [Shard(name, "m", "", WHOLE, OUTPUTS, len(RESIDUES), 0, 1.0, 0) for name in ("shard", "whole")]
    job = Job("j", {"m": MODEL}, [], shards)
    worker = Worker(job, held.store, Heart(held.root / "heartbeats"), "cpu")
    assert [shard.name for shard in worker.pending] == ["shard"]


def test_a_sequence_that_one_run_skipped_and_another_embedded_is_embedded(held: Held) -> None:
    assert len(held.table()) == len(RESIDUES) - 1
    commit_all(held, "another", [None] * len(RESIDUES))
    found = held.table()
    order = [held.keys.index(key) for key in pq.read_table(held.root / "catalog.parquet")["key"].to_pylist()]
    expected = np.stack([held.values[OUTPUTS[1]][row] for row in order])
    assert np.array_equal(np.stack(found["embedding"].to_pylist()).astype(np.float32), expected)


def test_a_shard_of_nothing_but_a_sequence_that_killed_its_process_is_in_the_way_of_no_table(held: Held) -> None:
    expected = held.table()
    skip = {output: values[:1] for output, values in held.values.items()}
    commit(
        held.store.path(SPACE, "killer"),
        pa.array(held.keys[:1], pa.binary(32)),
        ["the process died of signal SIGKILL, 3 times; see the log"],
        skip,
        {"model": "m", "weights_sha256": MODEL.descriptor.sha256},
    )
    assert held.table().equals(expected, check_metadata=True)


def test_a_table_tells_the_precision_of_its_own_rows_alone(held: Held) -> None:
    others = pa.array([bytes([number]) * 32 for number in range(len(held.keys))], pa.binary(32))
    commit(held.store.path(SPACE, "others"), others, [None] * len(others), held.values, {"precision": "bf16"})
    assert held.table().schema.metadata[b"esmflow.precision"] == b"fp32"


def test_other_readers_of_parquet_read_a_store_file(held: Held) -> None:
    assert polars.read_parquet(held.file)["key"].to_list() == held.keys
    assert duckdb.sql(f"SELECT key FROM '{held.file}'").fetchall() == [(key,) for key in held.keys]
    assert pq.read_schema(held.file).names == ["key", "reason", *map(str, OUTPUTS)]


def sort_a_million(target: Path) -> None:
    with database.connect(target) as connection:
        connection.execute("SET memory_limit = '20MB'; SET max_temp_directory_size = '1MB'; SET threads = 1")
        connection.execute("CREATE TABLE t AS SELECT md5(i::VARCHAR) AS key, i FROM range(1_000_000) r(i) ORDER BY key")


def test_no_space_to_spill_is_told_as_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="no space for temporary files"):
        sort_a_million(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


@contextmanager
def open_files(limit: int) -> Iterator[None]:
    """As if no more than so many could be open."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_too_few_open_files_blame_no_store_file(held: Held) -> None:
    for number in range(4):
        commit_all(held, f"more{number}", [None] * len(RESIDUES))
    expected, whole = held.table(), sorted(held.file.parent.iterdir())
    told = []
    for limit in range(3, 60, 4):
        with open_files(limit):
            try:
                held.table()
            except (IncompleteError, WriteError, OSError) as error:
                told.append(str(error))
        assert sorted(held.file.parent.iterdir()) == whole, limit
    assert len(told) > 3
    assert not any("delete" in text for text in told)
    assert held.table().equals(expected)


@pytest.mark.parametrize("error", [pa.ArrowMemoryError("malloc"), OSError(errno.EIO, "input"), MemoryError()])
def test_what_fails_of_a_whole_file_is_raised_as_it_is(held: Held, error: Exception) -> None:
    with pytest.raises(type(error)), reading(held.file):
        raise error
    assert held.file.exists()


def test_a_thread_that_arrow_does_not_get_blames_no_store_file(held: Held) -> None:
    with pytest.raises(IncompleteError, match=r"could not be read .* nothing there is damaged"), reading(held.file):
        raise pa.ArrowException("Failed to launch worker thread: Resource temporarily unavailable")
    assert held.file.exists()


def test_a_file_that_only_seemed_damaged_stays(held: Held) -> None:
    with pytest.raises(IncompleteError, match="nothing there is damaged"), reading(held.file):
        raise DamagedError("the footer has another checksum")
    assert held.file.exists()


def test_a_file_that_the_database_cannot_read_is_told_in_one_line(tmp_path: Path) -> None:
    with (
        pytest.raises(IncompleteError, match=r"could not be read .*gone\.parquet"),
        database.connect(tmp_path / "x") as db,
    ):
        db.read_parquet(str(tmp_path / "gone.parquet"))

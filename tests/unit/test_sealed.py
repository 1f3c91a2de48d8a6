"""What steps hand each other as files: a bit that rots in one is told, and never taken for what was written."""

import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from esmflow.architecture import Architecture
from esmflow.errors import DataError
from esmflow.inputs.catalog import ingest
from esmflow.inputs.masked import write_masked
from esmflow.inputs.samples import Fasta
from esmflow.job import SHARD, Job
from esmflow.plan.plan import plan
from esmflow.plan.sizes import Sizes
from esmflow.planned_model import Descriptor, ModelSpec, PlannedModel
from esmflow.receipt import JobFigures, Receipt, SkippedSequence
from esmflow.report.maps import draw
from esmflow.representation import Output
from esmflow.results import Results, read_outcomes
from esmflow.run_plan import RunPlan
from esmflow.sealed import seal
from esmflow.store.quarantine import SetAsideError
from esmflow.store.store import VECTOR_FILE, Store
from esmflow.tables.features import write_table
from esmflow.tables.located import LocatedRecords
from esmflow.variant import residues_of
from esmflow.worker.messages import EmbedShard

SHAPE = Architecture("ESM-2", 6, 8, 4, 32, token_dropout=True, max_residues=None, lm_head=True, contact_head=True)
SPEC = ModelSpec("m", (6,), ("mean",), "truncate", 1022, 0, "auto")
MODEL = PlannedModel(SPEC, Descriptor("m", ["weights.pt"], [[1, 2]], "ab" * 32, SHAPE))
SIZES = Sizes(target_minutes=5, max_jobs=1, gpus_per_job=0, threads=1, tokens_per_pack=None, part_bytes=1e9)
FLIPS = 60


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """Those of a sample as far as its plan."""
    fasta = tmp_path / "a.fasta"
    fasta.write_text("".join(f">protein{number} of a sample\nM{'KV' * number}\n" for number in range(1, 9)))
    made = Results(tmp_path / "results")
    ingest("a", [Fasta(fasta)], made.catalog("a"), made.sequences("a"), fail_on_invalid=False)
    write_masked(made.sequences("a"), SPEC, made.masked("a", "m"))
    plan([MODEL], ["a"], made, Store(tmp_path / "store"), SIZES)
    return made


def flips(path: Path) -> Callable[[], object]:
    """Flip another bit of a file with each call."""
    whole, draw = path.read_bytes(), random.Random(7)
    places = iter(draw.sample(range(len(whole)), min(FLIPS, len(whole))))

    def flip() -> None:
        content = bytearray(whole)
        content[next(places)] ^= 1 << draw.randrange(8)
        path.write_bytes(content)

    return flip


def read_catalog(results: Results) -> None:
    write_table(results.catalog("a"), MODEL, Output(6, "mean"), Store(results.root), results.root / "table")


def read_sequences(results: Results) -> None:
    plan([MODEL], ["a"], results, Store(results.root / "store"), SIZES)


def list_copies(results: Results) -> None:
    write_masked(results.sequences("a"), SPEC, results.root / "copies")


def read_residues(results: Results) -> None:
    residues_of(results.sequences("a"), [])


def read_copies(results: Results) -> None:
    from esmflow import database

    with database.connect(results.root / "x") as connection:
        [output] = MODEL.of_copies.outputs
        LocatedRecords(connection, results.masked("a", "m"), MODEL.of_copies, output, Store(results.root))


@pytest.mark.parametrize(
    ("file", "read"),
    [
        (Results.catalog, read_catalog),
        (Results.sequences, read_sequences),
        (Results.sequences, list_copies),
        (Results.sequences, read_residues),
        (lambda results, sample: results.masked(sample, "m"), read_copies),
    ],
)
def test_a_flipped_bit_in_what_a_step_wrote_is_told_by_the_next_and_nothing_is_made_of_it(
    results: Results, file: Callable[[Results, str], Path], read: Callable[[Results], None]
) -> None:
    path = file(results, "a")
    before = sorted(results.root.rglob("*"))
    flip = flips(path)
    for _ in range(FLIPS):
        flip()
        with pytest.raises(DataError, match=rf"{path.name}: is damaged .* delete it and run again"):
            read(results)
    assert sorted(results.root.rglob("*")) == before


def task_of(results: Results) -> EmbedShard:
    [path] = results.job("any").parent.iterdir()
    job = Job.load(path)
    [shard] = job.shards
    target = Store(results.root.parent / "store").path(job.space(shard, "cpu"), shard.name)
    return EmbedShard(job.models["m"], shard, 0, shard.sequences, target)


def test_a_flipped_bit_in_a_shard_is_told_and_the_shard_set_aside_so_that_it_is_planned_again(
    results: Results,
) -> None:
    task = task_of(results)
    keys, residues = task.read()
    assert (len(keys), residues[0]) == (8, b"MKV")
    path = Path(task.shard.file)
    whole, flip = path.read_bytes(), flips(path)
    for _ in range(FLIPS):
        flip()
        damaged = path.read_bytes()
        with pytest.raises(SetAsideError, match="damaged and set aside; run again with --forcerun plan"):
            task.read()
        [aside] = (results.root.parent / "store" / "quarantine").iterdir()
        assert aside.read_bytes() == damaged
        with pytest.raises(SetAsideError, match="is gone"):
            task.read()
    path.write_bytes(whole)
    assert task.read()[1] == residues


def test_a_shard_whose_key_is_not_that_of_its_residues_is_set_aside_however_whole_its_file_is(
    results: Results,
) -> None:
    task = task_of(results)
    rows = pq.read_table(task.shard.file).to_pylist()
    rows[3]["residues"] = rows[3]["residues"].replace(b"K", b"R")
    pq.write_table(pa.Table.from_pylist(rows, SHARD), task.shard.file)
    seal(Path(task.shard.file))
    with pytest.raises(SetAsideError, match="set aside"):
        task.read()


def test_a_flipped_bit_in_plan_job_descriptor_or_receipt_is_told_in_one_line_or_changes_nothing(
    results: Results,
) -> None:
    MODEL.descriptor.save(results.descriptor("m"))
    figures = JobFigures(1.5, 0.5, 1.0, 0.0, 1, 0, 1, 0, 1 << 30, 3, 100, 0.9, 0, 0.0, 70.0)
    receipt = Receipt("ab", ["a/m/layer6.mean"], 8, 8, [], [SkippedSequence("cd", "why")], {}, figures, {"a": "1"})
    receipt.save(results.receipt("ab"))
    [job] = results.job("any").parent.iterdir()
    told = []
    files = {results.plan: RunPlan, job: Job, results.descriptor("m"): Descriptor, results.receipt("ab"): Receipt}
    for path, kind in files.items():
        whole, flip = kind.load(path), flips(path)
        for _ in range(FLIPS):
            flip()
            try:
                assert kind.load(path) == whole
            except DataError as error:
                told.append((path, str(error)))
    assert len(told) > 2 * FLIPS
    for path, text in told:
        assert text.startswith(f"{path}: ")
        assert "run again" in text
        assert "\n" not in text


def test_a_flipped_bit_in_a_feature_table_is_told_by_the_report_or_changes_nothing(tmp_path: Path) -> None:
    table = tmp_path / "layer6.mean.parquet"
    schema = pa.schema([("id", pa.string()), ("length", pa.int32()), ("embedding", pa.list_(pa.float32(), 4))])
    rows = [{"id": f"p{number}", "length": number, "embedding": [float(number)] * 4} for number in range(50)]
    pq.write_table(pa.Table.from_pylist(rows, schema), table, **VECTOR_FILE)
    expected, flip = draw({"a": [table]}), flips(table)
    assert expected
    told = []
    for _ in range(FLIPS):
        flip()
        try:
            drawn = draw({"a": [table]})
        except DataError as error:
            told.append(str(error))
        else:
            assert drawn
            assert drawn.ids == expected.ids
            assert np.array_equal(drawn.vectors, expected.vectors)
    assert len(told) > FLIPS // 4
    assert all(text.startswith(f"{table}: cannot be read (") and "\n" not in text for text in told)


def test_a_flipped_bit_in_a_status_file_is_no_traceback_and_what_the_system_refuses_is_no_damage(
    tmp_path: Path,
) -> None:
    status = tmp_path / "a.tsv"
    status.write_text("id\tlength\tstatus\treason\tflags\np1\t12\tembedded\t\t\np2\t3\tskipped\tgap\t\n")
    flip = flips(status)
    for _ in range(FLIPS):
        flip()
        with suppress(DataError):
            read_outcomes(status)
    status.write_bytes(status.read_bytes()[:32])
    with pytest.raises(DataError, match=r"a\.tsv: cannot be read .* delete it and run again"):
        read_outcomes(status)
    with pytest.raises(FileNotFoundError):
        read_outcomes(tmp_path / "b.tsv")
    with pytest.raises(OSError, match="Is a directory"):
        read_outcomes(tmp_path)


def test_json_of_earlier_versions_which_has_no_checksum_is_read(tmp_path: Path) -> None:
    MODEL.descriptor.save(tmp_path / "m.json")
    lines = (tmp_path / "m.json").read_text().splitlines()
    (tmp_path / "m.json").write_text("\n".join(line for line in lines if "checksum" not in line))
    assert Descriptor.load(tmp_path / "m.json") == MODEL.descriptor

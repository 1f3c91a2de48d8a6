"""The plan against a plain second implementation, on random records and a store that has some of the outputs."""

import hashlib
import json
import math
import random
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import reference
from esmflow.inputs.catalog import SEQUENCES
from esmflow.job import Job
from esmflow.model.fetch import fetch
from esmflow.plan.plan import plan
from esmflow.plan.sizes import Sizes
from esmflow.planned_model import ModelSpec, PlannedModel
from esmflow.representation import Output
from esmflow.results import Results
from esmflow.run_plan import RunPlan
from esmflow.sealed import seal
from esmflow.store import store
from esmflow.store.store import Store
from esmflow.treatment import WHOLE, Treatment
from receipts import receipt

MODEL = "tiny"
OUTPUTS = [Output(layer, name) for layer in (0, 1) for name in ("mean", "std")]
SPEC = ModelSpec(MODEL, (0, 1), ("mean", "std"), "truncate", 60, 0, "fp32")
TREATMENTS = [WHOLE, Treatment("truncate", 60)]


def key(residues: bytes) -> bytes:
    return hashlib.sha256(residues).digest()


def treatment(residues: bytes) -> Treatment:
    return TREATMENTS[len(residues) > 60]


class World:
    """Three samples with sequences in common, and a store with some outputs of some of them."""

    def __init__(self, root: Path, seed: int) -> None:
        draw = random.Random(seed)
        self.root = root
        reference.tiny_esm2(root / "tiny.pt")
        self.model = PlannedModel(SPEC, fetch(MODEL, str(root / "tiny.pt"), root / "weights"))
        pool = ["".join(draw.choices("ACDEFGHIKL", k=draw.randint(5, 80))).encode() for _ in range(300)]
        self.samples = {name: draw.choices(pool, k=200) for name in ("b", "a", "c")}
        self.has: dict[bytes, set[Output]] = {residues: set() for residues in pool}
        for number in range(6):
            outputs = draw.sample(OUTPUTS, draw.randint(1, 3))
            for kind in TREATMENTS:
                own = [residues for residues in draw.sample(pool, 60) if treatment(residues) == kind]
                keys = pa.array([key(residues) for residues in own], pa.binary(32))
                values = {output: [np.ones(8, np.float32)] * len(own) for output in outputs}
                path = Store(root / "store").path(self.model.space(kind), f"{number}")
                store.commit(path, keys, [None] * len(own), values, {})
                for residues in own:
                    self.has[residues] |= set(outputs)

    def plan(self, name: str, sizes: Sizes) -> list[Job]:
        """The jobs of a plan with results in a directory of that name."""
        results = Results(self.root / name)
        for sample, records in self.samples.items():
            rows = {
                "key": [key(residues) for residues in records],
                "length": list(map(len, records)),
                "residues": records,
            }
            results.sequences(sample).parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.table(rows, SEQUENCES), results.sequences(sample))
            seal(results.sequences(sample))
        plan([self.model], list(self.samples), results, Store(self.root / "store"), sizes)
        return [Job.load(path) for path in sorted(results.job("any").parent.glob("*"))]

    def first_seen(self) -> list[bytes]:
        return list(dict.fromkeys(residues for records in self.samples.values() for residues in records))


@pytest.mark.parametrize("seed", [1, 2])
def test_each_missing_output_is_planned_once(tmp_path: Path, seed: int) -> None:
    world = World(tmp_path, seed)
    jobs = world.plan("results", Sizes(1e-7, 3, 0, 1, None, part_bytes=1e9))
    assert len(jobs) == 3
    planned: dict[bytes, list[Output]] = {}
    position = {residues: number for number, residues in enumerate(world.first_seen())}
    shards = [(job, shard) for job in jobs for shard in job.shards]
    assert len(shards) > 20
    for _, shard in shards:
        rows = pq.read_table(shard.file).to_pylist()
        assert [row["key"] for row in rows] == [key(row["residues"]) for row in rows]
        places = [position[row["residues"]] for row in rows]
        assert places == sorted(places)
        assert shard.sequences == len(rows)
        for row in rows:
            assert row["residues"] not in planned
            assert treatment(row["residues"]) == shard.treatment
            planned[row["residues"]] = shard.outputs
    missing = {residues: [o for o in OUTPUTS if o not in world.has[residues]] for residues in position}
    assert {residues: sorted(outputs) for residues, outputs in planned.items()} == {
        residues: sorted(outputs) for residues, outputs in missing.items() if outputs
    }


def test_jobs_serve_the_tables_that_they_compute_something_for(tmp_path: Path) -> None:
    world = World(tmp_path, 3)
    jobs = world.plan("results", Sizes(1e-7, 5, 0, 1, None, part_bytes=1e9))
    for job in jobs:
        serves = set()
        for shard in job.shards:
            own = set(pq.read_table(shard.file)["residues"].to_pylist())
            samples = [sample for sample, records in world.samples.items() if own & set(records)]
            serves |= {f"{sample}/{MODEL}/{output}" for sample in samples for output in shard.outputs}
        assert set(job.serves) == serves
    needs = json.loads((tmp_path / "results/plan/plan.json").read_text())["tables"]
    for table, names in needs.items():
        assert names == sorted(job.name for job in jobs if table in job.serves)


def test_the_same_work_has_the_same_names(tmp_path: Path) -> None:
    world = World(tmp_path, 4)
    sizes = Sizes(3e-7, 3, 0, 1, None, part_bytes=1e9)
    first, second = world.plan("one", sizes), world.plan("two", sizes)
    assert [job.name for job in first] == [job.name for job in second]
    names = [[shard.name for job in jobs for shard in job.shards] for jobs in (first, second)]
    assert names[0] == names[1]


def test_a_measured_rate_changes_the_size_of_shards_and_no_name_of_what_is_stored(tmp_path: Path) -> None:
    minutes = 1e-6
    world, sizes = World(tmp_path, 7), Sizes(minutes, 3, 0, 1, None, part_bytes=1e9)
    jobs, results = world.plan("results", sizes), Results(tmp_path / "results")
    needs = RunPlan.load(results.plan).tables
    # Sixteen times the rate that is assumed of a CPU.
    receipt(MODEL, 16e11, 1.0).save(results.receipt("of_another_plan"))
    counts: list[Counter[str]] = []
    for rate, planned in ((1e11, jobs), (16e11, world.plan("results", sizes))):
        costs: defaultdict[str, float] = defaultdict(float)
        counts.append(Counter())
        for shard in (shard for job in planned for shard in job.shards):
            batch = f"{shard.treatment} {shard.outputs}"
            costs[batch] += shard.cost
            counts[-1][batch] += 1
        for batch, count in counts[-1].items():
            assert count <= math.ceil(costs[batch] / (60 * minutes * rate))
    assert counts[1].total() < counts[0].total() / 4
    for job in jobs:
        replace(receipt(MODEL, 16e11, 1.0), job=job.name, serves=job.serves).save(results.receipt(job.name))
    for kind in TREATMENTS:
        keys = [key(residues) for residues in world.first_seen() if treatment(residues) == kind]
        path = Store(tmp_path / "store").path(world.model.space(kind), "all")
        ones = {output: [np.ones(8, np.float32)] * len(keys) for output in OUTPUTS}
        store.commit(path, pa.array(keys, pa.binary(32)), [None] * len(keys), ones, {})
    assert world.plan("results", sizes) == []
    assert RunPlan.load(results.plan).tables == needs


def test_tables_larger_than_a_part_are_told(tmp_path: Path) -> None:
    world = World(tmp_path, 5)
    size = 200 * world.model.architecture.embed_dim * 4
    for part_bytes, expected in ((size, []), (size - 1, [f"{s}/{MODEL}/{o}" for s in "abc" for o in OUTPUTS])):
        world.plan("results", Sizes(1, 1, 0, 1, None, part_bytes))
        assert sorted(json.loads((tmp_path / "results/plan/plan.json").read_text())["in_parts"]) == sorted(expected)


def test_a_plan_that_was_written_before_samples_could_be_refused_is_read(tmp_path: Path) -> None:
    World(tmp_path, 6).plan("results", Sizes(1, 1, 0, 1, None, part_bytes=1e9))
    path = tmp_path / "results/plan/plan.json"
    plan = json.loads(path.read_text())
    assert plan.pop("refused") == {}
    path.write_text(json.dumps(plan))
    assert RunPlan.load(path).refused == {}


def test_a_shortage_is_tried_again_by_each_new_plan_and_a_lasting_reason_is_not(tmp_path: Path) -> None:
    world, sizes = World(tmp_path, 4), Sizes(1e-5, 1, 0, 1, None, part_bytes=1e9)
    committed = store.Store(tmp_path / "store")
    short, lasting, *fresh = [residues for residues in world.first_seen() if not world.has[residues]]
    assert fresh

    def commit(name: str, residues: bytes, reason: str) -> None:
        path = committed.path(world.model.space(treatment(residues)), name)
        nothing = {output: [np.zeros(8, np.float32)] for output in OUTPUTS}
        store.commit(path, pa.array([key(residues)], pa.binary(32)), [reason], nothing, {})

    commit("short", short, "out of memory: 80 residues in one pass")
    commit("lasting", lasting, "non-finite representation")
    names: set[str] = set()
    for attempt in range(3):
        [job] = world.plan(f"results{attempt}", sizes)
        planned = {shard.name: pq.read_table(shard.file)["residues"].to_pylist() for shard in job.shards}
        assert not any(lasting in residues for residues in planned.values())
        [name] = [name for name, residues in planned.items() if short in residues]
        # Alone, so that it kills no process that has others in hand.
        assert planned[name] == [short]
        assert {residues for shard in planned.values() for residues in shard} >= set(fresh)
        assert world.plan(f"again{attempt}", sizes)[0].name == job.name
        assert name not in names
        names.add(name)
        commit(name, short, "the process died of signal SIGKILL, 3 times; see the log")

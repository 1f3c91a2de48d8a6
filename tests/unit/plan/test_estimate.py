"""Estimates of worker jobs: from receipts where there are some, and never less memory than a real worker takes."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import random_weights
import reference
from esmflow.errors import DataError, DeviceError, WriteError
from esmflow.inputs.catalog import ingest
from esmflow.inputs.samples import Fasta
from esmflow.model import weights
from esmflow.plan.estimate import ASSUMED_RATES, memory_mb, rate
from esmflow.plan.plan import plan
from esmflow.plan.preflight import require_room
from esmflow.plan.sizes import Sizes
from esmflow.planned_model import Descriptor, ModelSpec, PlannedModel
from esmflow.representation import Output
from esmflow.results import Results
from esmflow.run_plan import Preflight
from esmflow.store.store import Store
from receipts import receipt, receipt_of
from workflow import FULL_SIZE, script

SIZES = Sizes(target_minutes=5, max_jobs=2, gpus_per_job=0, threads=2, tokens_per_pack=None)
PROTEINS = [("ACDEFGHIKLMNPQRSTVWY" * 20)[start : start + 300] for start in range(20)]


def model(name: str, precision: str, kind: str = "ESM-2") -> PlannedModel:
    spec = ModelSpec(name, (-1,), ("mean",), "truncate", 1022, 0, precision)
    shape = replace(random_weights.SHAPES["8M"], kind=kind)
    return PlannedModel(spec, Descriptor(name, [], [], "ab" * 32, shape))


@pytest.mark.parametrize(("gpus", "device"), [(0, "cpu"), (1, "cuda")])
def test_without_receipts_the_rate_is_the_tables(gpus: int, device: str) -> None:
    found = rate([], model("m", "fp32"), gpus)
    assert found == (device, ASSUMED_RATES[device, "fp32"], False, ASSUMED_RATES[device, "fp32"])


def test_two_gpus_are_taken_to_be_twice_as_fast_as_one() -> None:
    assert rate([], model("m", "auto"), 2).flops_per_second == 2 * rate([], model("m", "auto"), 1).flops_per_second


def test_the_measured_rate_is_all_work_over_all_seconds_of_the_models_own_receipts() -> None:
    receipts = [receipt("m", 4e10, 100), receipt("m", 1e10, 300), receipt("other", 9e12, 1000)]
    assert rate(receipts, model("m", "auto"), 0) == ("cpu", (4e10 * 100 + 1e10 * 300) / 400, True, 1e11 / 8)


def test_a_shard_takes_its_minutes_on_one_of_the_gpus_that_receipts_tell_of() -> None:
    """Of four GPUs at 3e14 a second each; the nearest doubling of the assumed 2e13 is 3.2e14."""
    used = receipt("m", 3e14, 1000, "cuda:0", "fp16").models
    four = rate([receipt_of(used, 4)], model("m", "auto"), 4)
    assert four.flops_per_second == pytest.approx(4 * 3e14)
    assert four.shard_cost(5) == pytest.approx(300 * 3.2e14)
    assert 1 / math.sqrt(2) <= four.shard_cost(5) / (300 * 3e14) <= math.sqrt(2)


def test_rates_that_differ_by_noise_cut_alike() -> None:
    costs = {
        rate([receipt("m", 1e11 * 16 * noise, 60)], model("m", "fp32"), 0).shard_cost(5) for noise in (0.8, 1, 1.3)
    }
    assert len(costs) == 1


def test_a_new_model_is_taken_to_be_as_fast_as_the_others_at_its_precision() -> None:
    receipts = [receipt("other", 4e13, 10, "cuda:0", "fp16"), receipt("other", 1e13, 10, "cuda:0", "fp32")]
    assert rate(receipts, model("new", "auto"), 1) == ("cuda", 4e13, True, 2e13 * 2)
    assert rate(receipts, model("new", "fp32"), 1) == ("cuda", 1e13, True, 5e12 * 2)
    assert not rate(receipts, model("new", "bf16"), 1).measured


def test_the_rate_of_auto_is_that_of_the_16_bit_which_the_family_takes_on_a_gpu() -> None:
    receipts = [receipt("other", 4e13, 10, "cuda:0", "fp16"), receipt("other", 3e13, 10, "cuda:0", "bf16")]
    assert rate(receipts, model("new", "auto", "ESM-2"), 1).flops_per_second == 4e13
    assert rate(receipts, model("new", "auto", "ESM-C"), 1).flops_per_second == 3e13


def test_receipts_without_figures_of_a_model_tell_nothing() -> None:
    assert not rate([receipt_of({}, 0)], model("m", "auto"), 0).measured


def test_where_all_jobs_found_no_gpu_the_next_will_find_none() -> None:
    assert rate([receipt("m", 5e10, 60)], model("m", "auto"), 1) == ("cpu", 5e10, True, 1e11 / 2)
    assert rate([receipt("m", 5e10, 60), receipt("m", 5e13, 60, "cuda", "fp16")], model("m", "auto"), 1) == (
        "cuda",
        5e13,
        True,
        2e13 * 2,
    )


def planned(
    directory: Path, representations: tuple[str, ...], store: Path | None = None, sizes: Sizes = SIZES
) -> dict[str, dict[str, Any]]:
    """The jobs of plan.json for one sample and a tiny model."""
    (directory / "a.fasta").write_text("".join(f">p{n}\n{residues}\n" for n, residues in enumerate(PROTEINS)))
    results = Results(directory)
    ingest("a", [Fasta(directory / "a.fasta")], results.catalog("a"), results.sequences("a"), fail_on_invalid=True)
    reference.tiny_esm2(directory / "tiny.pt")
    spec = ModelSpec("m", (-1,), representations, "truncate", 1022, 0, "auto")
    model = PlannedModel(spec, weights.describe("m", directory / "tiny.pt"))
    plan([model], ["a"], results, Store(store or directory / "store"), sizes)
    return dict(json.loads((directory / "plan" / "plan.json").read_text())["jobs"])


def test_the_plan_takes_the_time_of_a_job_from_the_rate_of_earlier_ones(tmp_path: Path) -> None:
    [first] = planned(tmp_path, ("mean",)).values()
    receipt("m", first["cost"] / 3600, 7.0).save(tmp_path / "receipts" / "earlier.json")
    [second] = planned(tmp_path, ("mean",), sizes=replace(SIZES, max_jobs=1)).values()
    assert 60 < second["minutes"] < 61
    assert first["minutes"] < 1


@pytest.mark.parametrize("content", ["", "{", "[]", '{"models": {}}'])
def test_a_damaged_receipt_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "receipts").mkdir()
    (tmp_path / "receipts" / "earlier.json").write_text(content)
    with pytest.raises(DataError, match=r"receipts/earlier\.json: receipt is damaged"):
        planned(tmp_path, ("mean",))


#: Of what takes least and most memory, and at full size also of what lies between.
MEASURED = [("mean",), ("contacts",), *([("per_tok",)] if FULL_SIZE else [])]


@pytest.mark.parametrize("representations", MEASURED)
def test_a_worker_takes_no_more_memory_than_the_plan_says(tmp_path: Path, representations: tuple[str, ...]) -> None:
    [(name, job)] = planned(tmp_path, representations).items()
    arguments = [
        "--job",
        f"plan/jobs/{name}.json",
        "--store",
        "store",
        "--receipt",
        "receipts/r.json",
        "--heartbeats",
        "beats",
    ]
    assert script("embed", *arguments, "--threads", "2", cwd=tmp_path).returncode == 0
    peak = json.loads((tmp_path / "receipts/r.json").read_text())["figures"]["peak_memory_bytes"]
    assert job["memory_mb"] / 4 < peak / 2**20 <= job["memory_mb"]


def test_each_gpu_of_a_job_has_a_process_with_memory_of_its_own() -> None:
    shape = random_weights.SHAPES["650M"]
    descriptor = Descriptor("m", ["m.pt"], [[2 << 30, 0]], "ab" * 32, shape)
    outputs, sizes = [Output(33, "mean")], {"threads": 8, "longest": 1022, "tokens_per_pack": None}
    one, four = (
        memory_mb(descriptor, outputs, device="cuda", gpus=gpus, shard_bytes=1 << 30, **sizes) for gpus in (1, 4)
    )
    assert four == 4 * one > 4 * (2048 + 1024)


def test_the_preflight_adds_up_what_is_to_be_written(tmp_path: Path) -> None:
    [job] = planned(tmp_path, ("mean", "per_tok")).values()
    preflight = json.loads((tmp_path / "plan" / "plan.json").read_text())["preflight"]
    numbers = 48 * (len(PROTEINS) + sum(map(len, PROTEINS)))
    unique = 48 * (len(set(PROTEINS)) + sum(map(len, set(PROTEINS))))
    assert len(set(PROTEINS)) == len(PROTEINS)
    assert (preflight["store_bytes"], preflight["table_bytes"]) == (4 * unique, 4 * numbers)
    assert (preflight["jobs"], preflight["sequences"]) == (1, len(PROTEINS))
    assert preflight["device_hours"] == pytest.approx(job["minutes"] / 60, abs=1e-3)
    assert preflight["measured"] is False


def test_a_store_that_does_not_fit_on_its_disk_ends_the_plan(tmp_path: Path, small_disk: Path) -> None:
    with pytest.raises(WriteError, match=r"disk/store: the run needs about 1\.\d MiB"):
        planned(tmp_path, ("per_tok",), small_disk / "store")
    assert not (tmp_path / "plan").exists()
    assert len(planned(tmp_path, ("mean",), small_disk / "store")) == 1


def test_weights_beyond_the_memory_of_this_machine_end_a_plan_whose_jobs_run_here(tmp_path: Path) -> None:
    huge = Preflight(1, 1, "cpu", 1.0, 60.0, False, 1000, 1 << 60, 0, 0)
    with pytest.raises(DeviceError, match="memory"):
        require_room(huge, tmp_path, tmp_path, local=True)
    require_room(huge, tmp_path, tmp_path, local=False)
    require_room(replace(huge, device="cuda"), tmp_path, tmp_path, local=True)

"""The store's command: what it lists, finds and removes, and that no damage escapes it."""

import hashlib
import json
import os
import random
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from esmflow.architecture import Architecture
from esmflow.errors import DataError
from esmflow.inputs.catalog import ingest
from esmflow.inputs.samples import Fasta
from esmflow.plan.plan import plan
from esmflow.plan.sizes import Sizes
from esmflow.planned_model import Descriptor, ModelSpec, PlannedModel, Space
from esmflow.representation import Output
from esmflow.results import Results
from esmflow.store import keeping
from esmflow.store.store import Store, commit
from esmflow.treatment import WHOLE
from in_process import call
from workflow import error_line, script

MEAN, RESIDUES = Output(6, "mean"), Output(6, "per_tok")
SEQUENCES = ["M" + "KV" * number for number in range(1, 9)]
DAY = 86400


def key(sequence: str) -> bytes:
    return hashlib.sha256(sequence.encode()).digest()


def vector(sequence: str, width: int = 8) -> np.ndarray:
    return np.random.default_rng(len(sequence)).normal(size=width).astype(np.float32)


def put(
    root: Path,
    shard: str,
    sequences: list[str],
    *,
    model: str = "m",
    outputs: tuple[Output, ...] = (MEAN,),
    reasons: Mapping[str, str] | None = None,
    spoil: float | None = None,
    days: float = 0,
) -> Path:
    """Commit made-up values, last used so many days ago."""
    path = Store(root).path(Space(hashlib.sha256(model.encode()).hexdigest(), WHOLE, "auto"), shard)
    values = {MEAN: [vector(sequence) for sequence in sequences]}
    values[RESIDUES] = [vector(sequence, 4 * len(sequence)).reshape(-1, 4) for sequence in sequences]
    if spoil is not None:
        values[MEAN][-1][3] = spoil
    keys = pa.array(map(key, sequences), pa.binary(32))
    why = [(reasons or {}).get(sequence) for sequence in sequences]
    metadata = {"model": model, "weights_sha256": "", "precision": "fp32", "attention": "sdpa"}
    commit(path, keys, why, {output: values[output] for output in outputs}, metadata)
    os.utime(path, (time.time(), time.time() - days * DAY))
    return path


def run(root: Path, name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return call("store", name, root / "store", *arguments, cwd=root)


def rows(result: subprocess.CompletedProcess[str]) -> list[dict[str, str]]:
    """The tab-separated lines on standard output, under their header."""
    assert result.returncode == 0, result.stderr
    header, *lines = (line.split("\t") for line in result.stdout.splitlines())
    return [dict(zip(header, line, strict=True)) for line in lines]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Files of two models; one file is larger and has two outputs."""
    root = tmp_path / "store"
    put(root, "old", SEQUENCES[:3], days=40)
    put(root, "older", SEQUENCES[3:5], model="n", days=90)
    put(root, "new", SEQUENCES[5:], outputs=(MEAN, RESIDUES), reasons={SEQUENCES[-1]: "out of memory"})
    return root


def test_ls_tells_of_each_file(tmp_path: Path, store: Path) -> None:
    found = {Path(row["file"]).stem: row for row in rows(script("store", "ls", store, cwd=tmp_path))}
    assert {name: row["sequences"] for name, row in found.items()} == {"old": "3", "older": "2", "new": "3"}
    assert {name: row["model"] for name, row in found.items()} == {"old": "m", "older": "n", "new": "m"}
    assert all(int(row["bytes"]) == Path(row["file"]).stat().st_size for row in found.values())
    assert found["new"]["outputs"] == "layer6.mean,layer6.per_tok"
    assert [row["file"] for row in rows(run(tmp_path, "ls", "--model", "n"))] == [found["older"]["file"]]


def test_stats_add_up(tmp_path: Path, store: Path) -> None:
    found = {(row["model"], row["output"]): row for row in rows(run(tmp_path, "stats"))}
    counts = {kind: (row["files"], row["sequences"]) for kind, row in found.items()}
    assert counts == {
        ("m", "layer6.mean"): ("2", "6"),
        ("m", "layer6.per_tok"): ("1", "3"),
        ("n", "layer6.mean"): ("1", "2"),
    }
    assert all(row["treatment"] == "whole" and row["precision"] == "auto" for row in found.values())
    columns = sum(int(row["bytes"]) for row in found.values())
    assert 0 < columns < sum(path.stat().st_size for path in keeping.paths(store))


@pytest.mark.parametrize("name", ["ls", "stats", "verify", "prune", "get", "path"])
def test_a_directory_that_is_not_there_is_told(tmp_path: Path, name: str) -> None:
    options = {"prune": ["--model", "m"], "get": ["--residues", "MKV"], "path": ["--residues", "MKV"]}
    result = run(tmp_path, name, *options.get(name, []))
    assert result.returncode == 65
    assert "no such store" in error_line(result)


def test_a_whole_store_verifies_and_is_left_alone(tmp_path: Path, store: Path) -> None:
    before = {path: path.read_bytes() for path in keeping.paths(store)}
    assert run(tmp_path, "verify").returncode == 0
    assert {path: path.read_bytes() for path in keeping.paths(store)} == before
    assert not (store / "quarantine").exists()


def test_every_flipped_bit_is_found(tmp_path: Path, store: Path) -> None:
    path = put(store, "victim", SEQUENCES[:2])
    content = path.read_bytes()
    draw = random.Random(5)
    # All of the first and last bytes, page headers and footers included, and some between.
    places = {*range(300), *range(len(content) - 300, len(content)), *draw.sample(range(len(content)), 300)}
    for place in sorted(places):
        damaged = bytearray(content)
        damaged[place] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="1 of 4 files"):
            keeping.verify(store)
        assert not path.exists(), place
        [aside] = (store / "quarantine").iterdir()
        assert aside.read_bytes() == damaged
    path.write_bytes(content)
    keeping.verify(store)


@pytest.mark.parametrize("kept", [0, 1, 11, 0.5, 0.99, -1])
def test_a_file_that_is_cut_short_is_put_aside(tmp_path: Path, store: Path, kept: float) -> None:
    path = next(path for path in keeping.paths(store) if path.stem == "new")
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if 0 < kept < 1 else int(kept)])
    result = run(tmp_path, "verify")
    assert result.returncode == 65
    line = error_line(result)
    assert "1 of 3 files" in line
    assert "run snakemake again" in line
    assert sorted(path.stem for path in keeping.paths(store)) == ["old", "older"]
    assert run(tmp_path, "verify").returncode == 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_damage(tmp_path: Path, store: Path, value: float) -> None:
    put(store, "bad", SEQUENCES[:4], spoil=value)
    result = run(tmp_path, "verify")
    assert result.returncode == 65
    assert "layer6.mean" in result.stderr
    assert "computes 4 sequences" in error_line(result)


def test_a_sequence_that_is_twice_in_a_file_is_damage(tmp_path: Path, store: Path) -> None:
    path = put(store, "twice", [SEQUENCES[0], SEQUENCES[0]])
    assert run(tmp_path, "verify").returncode == 65
    assert not path.exists()


def pruned(root: Path, *arguments: str) -> list[str]:
    """The shards that are chosen by a dry run, and then really removed."""
    before = keeping.paths(root / "store")
    dry = run(root, "prune", *arguments)
    assert dry.returncode == 0, dry.stderr
    assert keeping.paths(root / "store") == before
    *listed, last = dry.stdout.splitlines()
    assert "would be removed" in last
    chosen = [Path(line.split("\t")[-1]) for line in listed]
    assert run(root, "prune", *arguments, "--apply").returncode == 0
    assert set(before) - set(keeping.paths(root / "store")) == set(chosen)
    return [path.stem for path in chosen]


def test_prune_removes_what_was_not_used_for_so_long_and_nothing_without_apply(tmp_path: Path, store: Path) -> None:
    assert pruned(tmp_path, "--older-than", "60") == ["older"]
    assert pruned(tmp_path, "--older-than", "30") == ["old"]


def test_prune_keeps_the_most_recently_used_bytes(tmp_path: Path, store: Path) -> None:
    sizes = {path.stem: path.stat().st_size for path in keeping.paths(store)}
    assert pruned(tmp_path, "--keep-bytes", str(sum(sizes.values()))) == []
    assert pruned(tmp_path, "--keep-bytes", str(sizes["new"] + sizes["old"])) == ["older"]
    assert pruned(tmp_path, "--keep-bytes", "0K") == ["old", "new"]


def test_prune_of_a_model_leaves_the_others(tmp_path: Path, store: Path) -> None:
    assert pruned(tmp_path, "--model", "m", "--older-than", "1") == ["old"]
    assert pruned(tmp_path, "--model", "n") == ["older"]


def test_prune_without_a_limit_is_refused(tmp_path: Path, store: Path) -> None:
    result = script("store", "prune", store, "--apply", cwd=tmp_path)
    assert result.returncode == 78
    assert "--keep-bytes" in error_line(result)
    assert len(keeping.paths(store)) == 3


def found(result: subprocess.CompletedProcess[str]) -> list[dict[str, object]]:
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_get_by_residues_gives_every_output_as_committed(tmp_path: Path, store: Path) -> None:
    sequence = SEQUENCES[6]
    whole, ragged = found(run(tmp_path, "get", "--residues", sequence.lower() + "*"))
    assert np.array_equal(np.array(whole["embedding"], np.float32), vector(sequence))
    assert np.array_equal(np.array(ragged["embedding"], np.float32), vector(sequence, 4 * len(sequence)).reshape(-1, 4))
    assert (whole["output"], ragged["output"]) == ("layer6.mean", "layer6.per_tok")
    assert whole["key"] == key(sequence).hex()
    [alone] = found(run(tmp_path, "get", "--residues", sequence, "--output", "layer6.mean"))
    assert alone == whole


def test_get_tells_why_there_is_no_vector(tmp_path: Path, store: Path) -> None:
    [answer] = found(run(tmp_path, "get", "--residues", SEQUENCES[-1]))
    assert answer["reason"] == "out of memory"


def test_a_record_is_found_by_its_id(tmp_path: Path, store: Path) -> None:
    fasta = f">twin\n{SEQUENCES[0]}\n>other\n{SEQUENCES[1]}\n>twin\n{SEQUENCES[3]}\n>gap\nM-K\n>absent\nMMM\n"
    (tmp_path / "a.fa").write_text(fasta)
    catalog = tmp_path / "catalog.parquet"
    ingest("a", [Fasta(tmp_path / "a.fa")], catalog, tmp_path / "sequences", fail_on_invalid=False)
    answers = found(run(tmp_path, "get", "--id", "twin", "--catalog", catalog))
    expected = [vector(SEQUENCES[0]), vector(SEQUENCES[3])]
    assert np.array_equal(np.array([answer["embedding"] for answer in answers], np.float32), np.stack(expected))
    [place] = rows(run(tmp_path, "path", "--id", "other", "--catalog", catalog))
    assert pq.read_table(place["file"])["key"][int(place["row"])].as_py() == key(SEQUENCES[1])
    for name, told in {"gap": "skipped: gap", "nobody": "no record", "absent": "has no"}.items():
        result = run(tmp_path, "get", "--id", name, "--catalog", catalog)
        assert result.returncode == 65
        assert told in error_line(result)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--residues", "M-K"], "gap"),
        (["--residues", SEQUENCES[0], "--model", "n"], "by n"),
        (["--residues", SEQUENCES[0], "--output", "layer5.mean"], "layer5.mean"),
        (["--id", "p", "--catalog", "a.fa"], "a.fa"),
    ],
)
def test_what_is_not_there_is_told_in_one_line(tmp_path: Path, store: Path, arguments: list[str], told: str) -> None:
    (tmp_path / "a.fa").write_text(">p\nMKV\n")
    result = run(tmp_path, "path", *arguments)
    assert result.returncode == 65
    assert told in error_line(result)


def test_a_plan_renews_the_time_of_use_of_the_files_it_counts_on(tmp_path: Path) -> None:
    shape = Architecture("ESM-2", 6, 8, 4, 32, token_dropout=True, max_residues=None, lm_head=True, contact_head=True)
    descriptor = Descriptor("m", [], [], hashlib.sha256(b"m").hexdigest(), shape)
    root = tmp_path / "store"
    wanted = put(root, "wanted", SEQUENCES[:2], days=9)
    others = put(root, "others", SEQUENCES[4:], days=9)
    fresh = put(root, "fresh", SEQUENCES[2:3], days=0.1)
    times = {path: path.stat().st_mtime for path in (wanted, others, fresh)}
    (tmp_path / "a.fa").write_text("".join(f">p{n}\n{sequence}\n" for n, sequence in enumerate(SEQUENCES[:3])))
    results = Results(tmp_path)
    ingest("a", [Fasta(tmp_path / "a.fa")], results.catalog("a"), results.sequences("a"), fail_on_invalid=True)
    plan(
        [PlannedModel(ModelSpec("m", (6,), ("mean",), "truncate", 1022, 0, "auto"), descriptor)],
        ["a"],
        results,
        Store(root),
        Sizes(target_minutes=5, max_jobs=1, gpus_per_job=0, threads=1, tokens_per_pack=None, part_bytes=1e9),
    )
    assert json.loads((tmp_path / "plan" / "plan.json").read_text())["jobs"] == {}
    assert time.time() - wanted.stat().st_mtime < DAY
    assert {path: path.stat().st_mtime for path in (others, fresh)} == {path: times[path] for path in (others, fresh)}


def test_ls_of_a_damaged_store_tells_the_file(tmp_path: Path, store: Path) -> None:
    path = keeping.paths(store)[0]
    path.write_bytes(b"")
    result = run(tmp_path, "ls")
    assert result.returncode == 65
    assert path.name in error_line(result)


def test_a_store_may_be_moved(tmp_path: Path, store: Path) -> None:
    shutil.move(store, tmp_path / "elsewhere")
    keeping.verify(tmp_path / "elsewhere")

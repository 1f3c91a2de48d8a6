"""Tables of likelihoods against fair-esm's module, one sequence and one masked copy at a time."""

import random
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import reference
import torch
from esmflow.tables.likelihoods import write_likelihoods
from likelihood_runs import SAMPLE, Run

LETTERS = "ACDEFGHIKLMNPQRSTVWY"


def log_p(model: torch.nn.Module, sequence: str, masked: int | None = None) -> np.ndarray:
    found = reference.logits(model, sequence, masked).double().log_softmax(-1)
    return found[:, [reference.ALPHABET.get_idx(letter) for letter in LETTERS]].numpy()


def by_hand(model: torch.nn.Module, sequence: str) -> tuple[float, float, float]:
    """Perplexity, pseudo-perplexity and mean entropy, over the residues that are one of the 20."""
    rows = log_p(model, sequence)
    places = [i for i, letter in enumerate(sequence) if letter in LETTERS]
    own = [rows[i, LETTERS.index(sequence[i])] for i in places]
    masked = [log_p(model, sequence, i)[i, LETTERS.index(sequence[i])] for i in places]
    p = np.exp(rows) / np.exp(rows).sum(1, keepdims=True)
    entropy = -(p * np.log(p)).sum(1).mean()
    return float(np.exp(-np.mean(own))), float(np.exp(-np.mean(masked))), float(entropy)


def table(run: Run, *, masked: bool) -> pd.DataFrame:
    target = run.results.likelihoods(run.table("likelihoods"))
    copies = run.results.masked(SAMPLE, run.model.name) if masked else None
    write_likelihoods(run.results.catalog(SAMPLE), run.model, run.store, target, copies)
    return pq.read_table(target).to_pandas()


def test_perplexities_and_entropy_equal_those_by_hand(tmp_path: Path) -> None:
    model = reference.tiny_esm2(tmp_path / "tiny.pt")
    draw = random.Random(0)
    proteins = {name: "".join(draw.choices(LETTERS + "X", k=k)) for name, k in (("a", 30), ("b", 1), ("c", 49))}
    run = Run(tmp_path, {"tiny": tmp_path / "tiny.pt"}, ("likelihoods", "masked_marginals"), "truncate")
    run.ingest([*proteins.items(), ("gap", "M-"), ("a_again", proteins["a"]), ("odd", "XBX"), ("long", "MKV" * 30)])
    run.embed(run.plan())
    found = table(run, masked=True)
    assert list(found) == ["id", "length", "wt_perplexity", "masked_perplexity", "mean_entropy"]
    assert found["id"].to_list() == ["a", "b", "c", "a_again", "odd", "long"]
    assert found["length"].to_list() == [30, 1, 49, 30, 3, 90]
    proteins |= {"a_again": proteins["a"], "long": ("MKV" * 30)[:50]}
    for row in found.itertuples():
        values = np.array([row.wt_perplexity, row.masked_perplexity, row.mean_entropy])
        if row.id == "odd":
            assert np.isnan(values).tolist() == [True, True, False]
        else:
            assert np.abs(values / by_hand(model, proteins[row.id]) - 1).max() <= 1e-4


def test_the_masked_perplexity_is_told_where_masked_marginals_are_asked_for_alone(tmp_path: Path) -> None:
    reference.tiny_esm2(tmp_path / "tiny.pt")
    run = Run(tmp_path, {"tiny": tmp_path / "tiny.pt"}, ("likelihoods",))
    run.ingest([("a", "MKTAYIAKQR")])
    jobs = run.plan()
    assert [shard.sequences for job in jobs for shard in job.shards] == [1]
    run.embed(jobs)
    assert list(table(run, masked=False)) == ["id", "length", "wt_perplexity", "mean_entropy"]

"""Tables of variants against masking by hand with fair-esm's module, and what becomes of each line."""

import random
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import reference
import torch
from Bio.SeqUtils import seq3
from esmflow.errors import ConfigError, DataError, IncompleteError
from esmflow.inputs.catalog import refuse
from esmflow.planned_model import PlannedModel
from esmflow.run_plan import RunPlan
from esmflow.tables.variants import write_variants
from likelihood_runs import SAMPLE, Run, copies
from random_residues import LETTERS, residues

WT, MASKED = "tiny.wt_marginals", "tiny.masked_marginals"


class ByHand:
    """Scores of substitutions in one protein, each position masked in a copy of its own."""

    def __init__(self, model: torch.nn.Module, sequence: str) -> None:
        self._model, self._sequence = model, sequence
        self._unmasked = self._log_p(None)
        self._masked: dict[int, np.ndarray] = {}

    def _log_p(self, masked: int | None) -> np.ndarray:
        log_p = reference.logits(self._model, self._sequence, masked).double().log_softmax(-1)
        return log_p[:, [reference.ALPHABET.get_idx(letter) for letter in LETTERS]].numpy()

    def __call__(self, mutant: str) -> tuple[float, float]:
        wt = masked = 0.0
        for part in mutant.split(":"):
            i, own, new = int(part[1:-1]) - 1, LETTERS.index(part[0]), LETTERS.index(part[-1])
            if i not in self._masked:
                self._masked[i] = self._log_p(i)[i]
            wt += self._unmasked[i, new] - self._unmasked[i, own]
            masked += self._masked[i][new] - self._masked[i][own]
        return wt, masked


def any_mutant(draw: random.Random, sequence: str, most: int = 3) -> str:
    positions = sorted(draw.sample(range(len(sequence)), draw.randint(1, min(most, len(sequence)))))
    return ":".join(f"{sequence[i]}{i + 1}{draw.choice(LETTERS)}" for i in positions)


@pytest.fixture
def tiny(tmp_path: Path) -> torch.nn.Module:
    return reference.tiny_esm2(tmp_path / "tiny.pt")


def run_in(root: Path, representations: tuple[str, ...] = ("mean",), **options: object) -> Run:
    return Run(root, {"tiny": root / "tiny.pt"}, representations, **options)  # type: ignore[arg-type]


def test_2000_variants_have_the_scores_and_the_ranks_of_the_plain_lines(tmp_path: Path, tiny: torch.nn.Module) -> None:
    protein, draw = residues(45, 0), random.Random(1)
    by_hand = ByHand(tiny, protein)
    lines = [("p", any_mutant(draw, protein)) for _ in range(2000)]
    run = run_in(tmp_path)
    run.ingest([("other", residues(30, 1)), ("p", protein)])
    found, jobs = run.score(lines)
    assert copies(jobs) == len({part[1:-1] for _, mutant in lines for part in mutant.split(":")}) == 45
    assert list(found) == ["id", "mutant", WT, MASKED, "reason"]
    assert list(zip(found["id"], found["mutant"], strict=True)) == lines
    assert found["reason"].isna().all()
    expected = np.array([by_hand(mutant) for _, mutant in lines])
    assert np.abs(found[[WT, MASKED]].to_numpy() - expected).max() <= 1e-4
    for column, theirs in zip((WT, MASKED), expected.T, strict=True):
        assert found[column].corr(pd.Series(theirs), method="spearman") == pytest.approx(1, abs=1e-6)


def test_a_later_sheet_computes_what_is_new_and_nothing_else(tmp_path: Path, tiny: torch.nn.Module) -> None:
    protein, by_hand = residues(45, 0), ByHand(tiny, residues(45, 0))
    run = run_in(tmp_path)
    run.ingest([("other", residues(30, 1)), ("p", protein)])
    first = [("p", f"{protein[i]}{i + 1}A") for i in range(10)]
    _, jobs = run.score(first)
    counts = {str(shard.outputs[0]): 0 for job in jobs for shard in job.shards}
    for job in jobs:
        for shard in job.shards:
            counts[str(shard.outputs[0])] += shard.sequences
    assert counts == {"layer3.mean": 2, "layer3.wt_marginals": 1, "layer3.masked": 10}
    second = first[5:] + [("p", f"{protein[i]}{i + 1}C") for i in range(30, 40)]
    found, jobs = run.score(second)
    assert copies(jobs) == sum(shard.sequences for job in jobs for shard in job.shards) == 10
    expected = np.array([by_hand(mutant) for _, mutant in second])
    assert np.abs(found[[WT, MASKED]].to_numpy() - expected).max() <= 1e-4
    assert run.score(first)[1] == []


def test_each_line_keeps_its_place_with_a_value_or_a_reason(tmp_path: Path, tiny: torch.nn.Module) -> None:
    protein = "MKTAYIAKQRQISFVKSHFSX"
    run = run_in(tmp_path)
    run.ingest([("p", protein), ("twin", "MKT"), ("bad", "MK-"), ("twin", "MKVL"), ("twin", "M*K")])
    mutants = {
        "T3A": None,
        "t3a": None,
        "p.Thr3Ala": None,
        "p.(Thr3Ala)": None,
        "THR3ALA": None,
        "T3T": None,
        "X21A": None,
        "T3A:A4C": None,
        "p.[Thr3Ala;Ala4Cys]": None,
        "Thr3Ala:p.Ala4Cys": None,
        "A3G": "position 3 has T, not A",
        "T3A:A5C": "position 5 has Y, not A",
        "A0G": "A0G: positions count from 1",
        "A22G": "position 22 is beyond the end (21 residues)",
        "A99999999999G": "position 99999999999 is beyond the end (21 residues)",
        "T3*": "T3*: a stop is no amino acid",
        "p.Thr3Ter": "p.Thr3Ter: a stop is no amino acid",
        "T3X": "T3X: X is none of the 20 amino acids",
        "T3AG": "'T3AG' is no substitution such as A42G or p.Ala42Gly",
        "p.Thr3_Ala4insGly": "'p.Thr3_Ala4insGly' is no substitution such as A42G or p.Ala42Gly",
        "p.Thr3=": "'p.Thr3=' is no substitution such as A42G or p.Ala42Gly",
        "p.(Thr3Ala": "'p.(Thr3Ala' is no substitution such as A42G or p.Ala42Gly",
        "T3A:": "'' is no substitution such as A42G or p.Ala42Gly",
        "": "'' is no substitution such as A42G or p.Ala42Gly",
        "T3A:T3C": "position 3 is named twice",
        "Foo3Ala": "'Foo3Ala' is no substitution such as A42G or p.Ala42Gly",
    }
    lines = [("p", mutant) for mutant in mutants]
    lines[5:5] = [("nobody", "T3A"), ("twin", "K2A"), ("bad", "M1A"), ("P", "T3A")]
    found, _ = run.score(lines)
    expected = [
        (name, mutant, reason)
        for name, mutant in lines
        for reason in {
            "nobody": ["no such ID"],
            "P": ["no such ID"],
            "bad": ["record skipped: gap"],
            "twin": [None, None, "record skipped: inner stop"],
        }.get(name, [mutants.get(mutant)])
    ]
    reasons = [None if pd.isna(reason) else reason for reason in found["reason"]]
    assert list(zip(found["id"], found["mutant"], reasons, strict=True)) == expected
    assert (found["reason"].isna() == found[WT].notna()).all()
    assert (found["reason"].isna() == found[MASKED].notna()).all()
    scores = found[found["id"] == "p"].set_index("mutant")[[WT, MASKED]]
    by_hand = ByHand(tiny, protein)
    for same in ("T3A", "t3a", "p.Thr3Ala", "p.(Thr3Ala)", "THR3ALA"):
        assert np.abs(scores.loc[same] - by_hand("T3A")).max() <= 1e-4
    for same in ("T3A:A4C", "p.[Thr3Ala;Ala4Cys]", "Thr3Ala:p.Ala4Cys"):
        assert np.abs(scores.loc[same] - by_hand("T3A:A4C")).max() <= 1e-4
    assert np.abs(scores.loc["T3T"]).max() == 0
    twins = found[(found["id"] == "twin") & found["reason"].isna()][[WT, MASKED]].to_numpy()
    assert np.abs(twins - [ByHand(tiny, "MKT")("K2A"), ByHand(tiny, "MKVL")("K2A")]).max() <= 1e-4


def test_a_position_is_read_in_its_window_or_refused_where_the_model_sees_it_not(
    tmp_path: Path, tiny: torch.nn.Module
) -> None:
    protein = residues(71, 2)
    lines = [("p", f"{protein[i]}{i + 1}{LETTERS[i % 20]}") for i in (0, 20, 35, 36, 49, 50, 70)]
    lines.append(("p", f"{protein[1]}2A:{protein[60]}61A"))
    reference.tiny_esm2(tmp_path / "tiny.pt")
    for long_sequences in ("window", "truncate", "skip"):
        (tmp_path / long_sequences).mkdir()
        run = Run(tmp_path / long_sequences, {"tiny": tmp_path / "tiny.pt"}, ("mean",), long_sequences)
        run.ingest([("p", protein)])
        found, _ = run.score(lines)
        reasons = [None if pd.isna(reason) else reason for reason in found["reason"]]
        if long_sequences == "skip":
            assert reasons == ["longer than 50 residues"] * 8
        elif long_sequences == "truncate":
            beyond = [f"position {p} is beyond the 50 residues that the model sees" for p in (51, 71, 61)]
            assert reasons == [None] * 5 + beyond
        else:
            assert reasons == [None] * 8
        first, last = ByHand(tiny, protein[:50]), ByHand(tiny, protein[21:])
        for mutant, *scores, reason in found[["mutant", WT, MASKED, "reason"]].itertuples(index=False):
            if not pd.isna(reason):
                assert np.isnan(scores).all()
                continue
            expected = np.zeros(2)
            for part in mutant.split(":"):
                i = int(part[1:-1]) - 1
                in_first = long_sequences == "truncate" or min(i, 49 - i) >= min(i - 21, 70 - i)
                expected += (first if in_first else last)(part if in_first else f"{part[0]}{i - 20}{part[-1]}")
            assert np.abs(scores - expected).max() <= 1e-4


def test_an_ensemble_has_the_mean_of_its_models_and_none_where_one_has_no_score(tmp_path: Path) -> None:
    for seed in (1, 2):
        reference.tiny_esm1b(tmp_path / f"esm1v_{seed}.pt", seed=seed)
    reference.tiny_esm2(tmp_path / "tiny.pt")
    names = ("esm1v_1", "tiny", "esm1v_2")
    run = Run(tmp_path, {name: tmp_path / f"{name}.pt" for name in names}, ("mean",))
    run.ingest([("p", residues(40, 0))])
    protein = residues(40, 0)
    found, _ = run.score([("p", f"{protein[3]}4W"), ("p", "W99A")])
    scores = [f"{name}.{score}" for name in names for score in ("wt_marginals", "masked_marginals")]
    means = ["mean(ESM-1b).wt_marginals", "mean(ESM-1b).masked_marginals"]
    assert list(found) == ["id", "mutant", *scores, *means, "reason"]
    for score in ("wt_marginals", "masked_marginals"):
        pair = found[[f"esm1v_1.{score}", f"esm1v_2.{score}"]].to_numpy()
        assert found[f"mean(ESM-1b).{score}"][0] == pytest.approx(pair[0].mean(), rel=1e-5)
        assert pair[0][0] != pair[0][1]
    assert found.loc[1, [*scores, *means]].isna().all()
    assert found["reason"].to_list()[1] == "position 99 is beyond the end (40 residues)"


def test_masked_marginals_of_all_positions_serve_variants_as_well(tmp_path: Path, tiny: torch.nn.Module) -> None:
    protein = residues(30, 0)
    run = run_in(tmp_path, ("masked_marginals", "wt_marginals"))
    run.ingest([("p", protein)])
    run.embed(run.plan())
    found, jobs = run.score([("p", f"{protein[3]}4W")])
    assert jobs == []
    assert np.abs(found[[WT, MASKED]].to_numpy()[0] - ByHand(tiny, protein)(f"{protein[3]}4W")).max() <= 1e-4


def test_a_table_is_not_written_while_a_copy_is_missing(tmp_path: Path, tiny: torch.nn.Module) -> None:
    protein = residues(30, 0)
    run = run_in(tmp_path)
    run.ingest([("p", protein)])
    run.match([("p", f"{protein[3]}4W"), ("p", f"{protein[4]}5W")])
    masked = [job for job in run.plan() for shard in job.shards if "masked" in str(shard.outputs)]
    assert masked
    paths = {"tiny": run.results.masked(SAMPLE, "tiny")}
    with pytest.raises(IncompleteError, match="--forcerun plan"):
        write_variants(run.results.mutants(SAMPLE), [run.model], paths, run.store, run.results.variants(SAMPLE))
    assert not run.results.variants(SAMPLE).exists()


def test_a_model_without_a_language_head_is_refused_before_anything_is_planned(esm2_8m: Path, tmp_path: Path) -> None:
    run = Run(tmp_path, {"trunk": esm2_8m}, ("mean",))
    run.ingest([("p", "MKT")])
    run.match([("p", "K2A")])
    with pytest.raises(ConfigError, match=r"models\.trunk: the weights have no head to score variants with"):
        run.plan()


def test_a_sample_that_was_refused_has_no_variants_and_stops_no_plan(tmp_path: Path, tiny: torch.nn.Module) -> None:
    run = run_in(tmp_path)
    refuse(DataError("sample s: no FASTA"), run.results.catalog(SAMPLE), run.results.sequences(SAMPLE))
    run.match([("p", "K2A")])
    assert run.plan() == []
    plan = RunPlan.load(run.results.plan)
    assert (plan.tables, plan.refused) == ({}, {SAMPLE: "sample s: no FASTA"})
    paths = {"tiny": run.results.masked(SAMPLE, "tiny")}
    with pytest.raises(DataError, match="no FASTA"):
        write_variants(run.results.mutants(SAMPLE), [run.model], paths, run.store, run.results.variants(SAMPLE))


def independent(sheet_line: tuple[str, str], records: Mapping[str, str]) -> str | None:
    """A second reading of a line: the variant in one-letter words, or None if it is refused."""
    name, mutant = sheet_line
    sequence, parts = records.get(name, ""), []
    for word in mutant.split(":"):
        one = word
        if re.match("p[.]", word):
            match = re.match("p[.]([A-Z][a-z][a-z])([0-9]+)([A-Z][a-z][a-z])$", word)
            if not match:
                return None
            singles = {seq3(letter): letter for letter in LETTERS}
            one = singles.get(match[1], "?") + match[2] + singles.get(match[3], "?")
        if not re.match("^[A-Za-z][0-9]+[A-Za-z]$", one):
            return None
        parts.append(one.upper())
    numbers = [int(part[1:-1]) for part in parts]
    if len(set(numbers)) < len(numbers) or any(part[-1] not in LETTERS for part in parts):
        return None
    fits = all(1 <= n <= len(sequence) and sequence[n - 1] == part[0] for n, part in zip(numbers, parts, strict=True))
    return ":".join(parts) if fits else None


@pytest.mark.parametrize("seed", range(3))
def test_random_sheets_have_a_value_or_a_reason_for_each_line(tmp_path: Path, tiny: torch.nn.Module, seed: int) -> None:
    draw = random.Random(seed)
    records = {f"p{number}": residues(draw.randint(1, 30), number) for number in range(4)}
    by_hand = {name: ByHand(tiny, sequence) for name, sequence in records.items()}

    def word(name: str) -> str:
        sequence = records.get(name, "MKV")
        position = draw.choice([draw.randint(1, len(sequence))] * 6 + [0, len(sequence) + 1, 10**6])
        own = sequence[position - 1] if 1 <= position <= len(sequence) and draw.random() < 0.9 else draw.choice(LETTERS)
        new = draw.choice(LETTERS if draw.random() < 0.9 else "XBZUOJ*-")
        kinds = [f"{own}{position}{new}"] * 8 + [f"{own}{position}{new}".lower(), f"{own}{position}{new}A", new, ""]
        if new in LETTERS:
            kinds += [f"p.{seq3(own)}{position}{seq3(new)}", f"p.{seq3(own)}{position}ins{seq3(new)}"]
        return draw.choice(kinds)

    lines = []
    for _ in range(150):
        name = draw.choice([*records, *records, "nobody"])
        lines.append((name, ":".join(word(name) for _ in range(draw.choice([1, 1, 1, 2, 3])))))
    run = run_in(tmp_path)
    run.ingest(list(records.items()))
    found, _ = run.score(lines)
    assert list(zip(found["id"], found["mutant"], strict=True)) == lines
    scored = 0
    for line, wt, masked, reason in zip(lines, found[WT], found[MASKED], found["reason"], strict=True):
        variant = independent(line, records)
        if variant is None:
            assert isinstance(reason, str), line
            assert np.isnan([wt, masked]).all()
        else:
            assert pd.isna(reason), (line, reason)
            assert np.abs(np.array([wt, masked]) - by_hand[line[0]](variant)).max() <= 1e-4
            scored += 1
    assert 20 < scored < len(lines) - 20


def test_models_that_see_unlike_parts_of_a_protein_have_a_reason_of_their_own(tmp_path: Path) -> None:
    reference.tiny_esm2(tmp_path / "tiny.pt")
    reference.tiny_esm2(tmp_path / "other.pt", seed=3)
    protein = residues(71, 2)
    run = Run(tmp_path, {"tiny": tmp_path / "tiny.pt", "other": tmp_path / "other.pt"}, ("mean",), "full")
    short = run.models["other"]
    spec = short.spec.__class__("other", (-1,), ("mean",), "truncate", 50, 20, "fp32")
    run.models["other"] = PlannedModel(spec, short.descriptor)
    run.ingest([("p", protein)])
    found, _ = run.score([("p", f"{protein[60]}61A"), ("p", f"{protein[1]}2A")])
    reason = "other: position 61 is beyond the 50 residues that the model sees"
    assert [None if pd.isna(text) else text for text in found["reason"]] == [reason, None]
    assert found[["tiny.wt_marginals", "tiny.masked_marginals"]].notna().all(axis=None)
    assert found.loc[0, ["other.wt_marginals", "mean(ESM-2).wt_marginals"]].isna().all()

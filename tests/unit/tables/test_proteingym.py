"""The export for ProteinGym, read as its readers read it."""

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
import reference
from esmflow import sealed
from esmflow.inputs.catalog import SEQUENCES
from esmflow.inputs.variants import MUTANTS
from esmflow.tables.proteingym import write_proteingym
from likelihood_runs import SAMPLE, Run

PROTEINS = {"P1_HUMAN": "MKTAYIAKQR", "a/b": "MSILVTR"}


@pytest.fixture
def scored(tmp_path: Path) -> tuple[Run, pd.DataFrame]:
    reference.tiny_esm2(tmp_path / "tiny.pt")
    run = Run(tmp_path, {"tiny": tmp_path / "tiny.pt"}, ("mean",))
    run.ingest([*PROTEINS.items(), ("P1_HUMAN", "MKTAYW")])
    lines = [("P1_HUMAN", mutant) for mutant in ("K2A", "p.Lys2Gly", "t3a", "Q9R:K2A", "K2A", "W3A", "R10A")]
    table, _ = run.score([("a/b", "S2A"), *lines])
    write_proteingym(
        run.results.mutants(SAMPLE),
        run.results.variants(SAMPLE),
        run.results.sequences(SAMPLE),
        run.results.proteingym(SAMPLE),
    )
    return run, table


def test_a_file_for_each_protein_has_its_mutants_once_with_sequence_and_scores(
    scored: tuple[Run, pd.DataFrame],
) -> None:
    run, table = scored
    directory = run.results.proteingym(SAMPLE)
    assert sorted(path.name for path in directory.iterdir()) == ["P1_HUMAN%-2.csv", "P1_HUMAN.csv", "a%2Fb.csv"]
    names = ["tiny.wt_marginals", "tiny.masked_marginals"]
    assay = pd.read_csv(directory / "P1_HUMAN.csv")
    assert list(assay) == ["mutant", "mutated_sequence", *names]
    assert assay["mutant"].to_list() == ["K2A", "K2G", "T3A", "K2A:Q9R", "R10A"]
    for mutant, sequence in zip(assay["mutant"], assay["mutated_sequence"], strict=True):
        expected = list(PROTEINS["P1_HUMAN"])
        for part in mutant.split(":"):
            assert expected[int(part[1:-1]) - 1] == part[0]
            expected[int(part[1:-1]) - 1] = part[-1]
        assert sequence == "".join(expected)
    ours = table[table["mutant"] == "Q9R:K2A"].dropna(subset=names)[names].to_numpy()
    assert assay.loc[assay["mutant"] == "K2A:Q9R", names].to_numpy() == pytest.approx(ours)
    other = pd.read_csv(directory / "P1_HUMAN%-2.csv")
    assert other["mutated_sequence"].to_list() == ["MATAYW", "MGTAYW", "MKAAYW"]


def test_pandas_merges_it_with_an_assay_by_mutant(scored: tuple[Run, pd.DataFrame]) -> None:
    run, _ = scored
    assay = pd.DataFrame({"mutant": ["T3A", "K2A"], "DMS_score": [0.1, 0.9]})
    merged = assay.merge(pd.read_csv(run.results.proteingym(SAMPLE) / "P1_HUMAN.csv"), on="mutant", how="left")
    assert merged["tiny.masked_marginals"].notna().all()


def test_a_sample_without_a_variant_has_an_empty_directory(tmp_path: Path) -> None:
    scores = pa.schema([("id", pa.string()), ("mutant", pa.string()), ("tiny.wt_marginals", pa.float32())])
    for name, schema in {"mutants": MUTANTS, "scores": scores.append(pa.field("reason", pa.string()))}.items():
        with sealed.writer(tmp_path / name, schema):
            pass
    with sealed.writer(tmp_path / "sequences", SEQUENCES):
        pass
    write_proteingym(*(tmp_path / name for name in ("mutants", "scores", "sequences", "directory")))
    assert list((tmp_path / "directory").iterdir()) == []

"""One uninterrupted run of the workflow that the tests of this folder share; none of them may change it."""

import functools
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import reference
import tiny_run as tiny
import torch
import yaml
from workflow import (
    MAX_LENGTH,
    MODEL,
    ROOT,
    Baseline,
    Entry,
    Vectors,
    Workspace,
    importing,
    plain,
    shorten_demo,
)


def bad_and_odd(sequence: str, other: str) -> list[Entry]:
    """Records that the design's chapter on letters speaks of."""
    half = len(sequence) // 2
    return [
        Entry("stop inner stop", f"{sequence[:half]}*{sequence[half:]}", reason="inner stop"),
        Entry("odd1 J and letters of no residue", f"{other}JA", f"{other}XA", flags="to_X:1"),
        Entry("gap", f"{sequence[:half]}-{sequence[half:]}", reason="gap"),
        Entry("odd2", f"{other.lower()}w", f"{other}W", flags="lowercase"),
        Entry("dots", f"{sequence[:half]}.{sequence[half:]}", reason="gap"),
        Entry("digit", f"{sequence}1", reason="digit"),
        Entry("odd3", f"{other}CW*", f"{other}CW", flags="terminal_stop"),
        Entry("character", f"{sequence}%", reason="invalid character"),
        Entry("nothing", "", reason="no residues"),
        Entry("only_stop", "*", reason="no residues", flags="terminal_stop"),
        Entry("", sequence, reason="no id"),
        Entry(" odd5 after a blank", f"{other}MM", f"{other}MM", flags="space_before_id"),
        Entry("odd4", f"{other} GH\t{sequence}", f"{other}GH{sequence}", flags="whitespace"),
        Entry("folded", "\n".join([other, sequence]), other + sequence),
    ]


@pytest.fixture(scope="session")
def baseline(esm2_8m: Path, uniprot: list[str], once: Callable[[str, Callable[[Path], None]], Path]) -> Baseline:
    draw = random.Random(7)
    unique = sorted(set(uniprot))
    short = draw.sample([sequence for sequence in unique if 60 <= len(sequence) <= MAX_LENGTH], 145)
    long = draw.sample([sequence for sequence in unique if 200 <= len(sequence) <= 300], 6)
    first = [plain(f"p{number} of sample a", sequence) for number, sequence in enumerate(short[:70])]
    first[3:3] = bad_and_odd(short[130][:50], short[131][:50])
    first[20:20] = [plain(f"long{number}", sequence) for number, sequence in enumerate(long[:4])]
    first += [first[0], plain("p0", short[1]), plain("other_name", short[0]), plain("long_again", long[0])]
    second = [plain(f"q{number}", sequence) for number, sequence in enumerate(short[60:130] + long[3:])]
    second.insert(1, Entry("bad", short[0] + "-", reason="gap"))
    draw.shuffle(second)
    model = {
        "weights": str(esm2_8m),
        "layers": [0, -1],
        "representations": ["mean", "std"],
        "long_sequences": "truncate",
        "max_length": MAX_LENGTH,
    }

    def run(directory: Path) -> None:
        work = Workspace(directory)
        rows = [("a", work.write_fasta("a.fasta", first)), ("b", work.write_fasta("b.fasta", second))]
        work.write_samples(rows)
        work.write_config({MODEL: model}, sharding={"target_minutes": 0.0012})
        work.run()

    return Baseline(Workspace(once("baseline", run)), {"a": first, "b": second}, short[132:])


@pytest.fixture(scope="session")
def fair_esm(esm2_8m: Path) -> Callable[[str], Vectors]:
    """fair-esm's vectors of a sequence with the learned weights."""
    model = reference.esm2_of_hugging_face(esm2_8m)

    @functools.cache
    def represent(sequence: str) -> Vectors:
        threads = torch.get_num_threads()
        # Where other processes share the cores, threads that wait for one another take many times as long.
        torch.set_num_threads(1)
        try:
            return reference.represent(model, sequence)
        finally:
            torch.set_num_threads(threads)

    return represent


@pytest.fixture(scope="session")
def tiny_run(once: Callable[[str, Callable[[Path], None]], Path]) -> Workspace:
    """A finished run of two samples with a tiny model."""
    return Workspace(once("tiny_run", tiny.run))


@pytest.fixture
def work(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


@pytest.fixture
def again(baseline: Baseline, tmp_path: Path) -> Workspace:
    """A copy of the shared run that a test may change."""
    return baseline.work.copy(tmp_path / "again")


LISTING = """
rule list_tables:
    default_target: True
    input: rules.esmflow_all.input
    output: "tables.txt"
    shell: "printf '%s\\n' {input:q} > {output}"
"""


@pytest.fixture(scope="session")
def demo(esm2_8m: Path, once: Callable[[str, Callable[[Path], None]], Path]) -> Workspace:
    """The demo's short proteins, run by another workflow that uses this one as a module, with the weights at hand."""

    def run(directory: Path) -> None:
        shutil.copytree(ROOT / "config" / "demo", directory / "config" / "demo")
        shorten_demo(directory)
        config = yaml.safe_load((ROOT / "config" / "demo.yaml").read_text())
        config["models"]["esm2_8M"]["weights"] = str(esm2_8m)
        (directory / "config.yaml").write_text(yaml.safe_dump({"esmflow": config}))
        (directory / "Snakefile").write_text(f'configfile: "config.yaml"\n{importing()}{LISTING}')
        Workspace(directory, project=directory).run()

    return Workspace(once("demo", run))

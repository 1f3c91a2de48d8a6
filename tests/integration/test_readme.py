"""README's commands, word for word, by a newcomer with a clean copy of the project and two FASTA files."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import reference
import yaml
from workflow import ENVIRONMENT, ROOT, shorten_demo

#: The tests themselves, and what runs for longer than tests should.
ELSEWHERE = {"make test", "make test-slurm", "make bench", "make demo-contigs"}


def commands() -> list[str]:
    blocks = re.findall(
        r"^    ((?:make|snakemake|python|\.) .*)$", (ROOT / "README.md").read_text(), flags=re.MULTILINE
    )
    return [line for line in blocks if line not in ELSEWHERE]


@pytest.fixture
def newcomer(tmp_path: Path, esm2_8m: Path) -> Path:
    """The files of the project, the environment that `make` would make, and the weights that would be downloaded."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("no git checkout to take a clean copy of")
    root = tmp_path / "esmflow"
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, root / name)
    # So few that the report has no UMAP, which is compiled for longer than all else takes.
    shorten_demo(root, longest=80)
    (root / ".venv").symlink_to(ROOT / ".venv")
    (root / "store/demo/weights").mkdir(parents=True)
    shutil.copy2(esm2_8m, root / "store/demo/weights")
    return root


def test_every_command_does_what_is_said_of_it(newcomer: Path) -> None:
    found = commands()
    assert [line.split()[0] for line in found] == ["make", ".", *["snakemake"] * 4, "python", "snakemake"]
    demo, activate, *own = found

    def run(command: str) -> str:
        result = subprocess.run(
            ["bash", "-c", f"set -e; {activate}; {command}"] if command != demo else ["bash", "-c", command],
            cwd=newcomer,
            env=ENVIRONMENT | {"PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
        return result.stdout + result.stderr

    assert "demo_a: " in run(demo)
    assert (newcomer / "results/demo/report/index.html").stat().st_size > 1_000_000
    assert "Nothing to be done" in run(demo)

    reference.tiny_esm2(newcomer / "tiny.pt")
    for name in ("soil", "gut"):
        (newcomer / f"{name}.faa").write_text(f">{name}1\nMKTAYIAKQR\n>{name}2\nMKV\n>{name}3\nMA-\n")
    (newcomer / "config/samples.tsv").write_text("sample\tfasta\nsoil\tsoil.faa\ngut\tgut.faa\n")
    config = yaml.safe_load((newcomer / "config/config.yaml").read_text())
    config["models"] = {"tiny": config["models"].popitem()[1] | {"weights": "tiny.pt"}}
    (newcomer / "config/config.yaml").write_text(yaml.safe_dump(config))
    assert own[0] == "snakemake --profile profiles/local"
    assert "2 sequences in 1 jobs" in run(own[1])
    assert not (newcomer / "results/features").exists()
    run(own[0])
    assert len(list((newcomer / "results/features").rglob("*.parquet"))) == 2
    for command in own[2:]:
        run(command)
    assert (newcomer / "results/report/index.html").exists()

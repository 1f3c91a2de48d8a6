"""Workflows that use this one as a module: the demo, with what README does with its tables, and odd ones."""

import gzip
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from Bio import SeqIO
from workflow import ENVIRONMENT, ROOT, Vectors, Workspace, error_line, importing, matrix, plain, relative_error


def test_the_module_gives_its_tables_to_the_rules_of_the_importing_workflow(demo: Workspace) -> None:
    listed = (demo.root / "tables.txt").read_text().splitlines()
    assert sorted(listed) == [
        *(f"results/demo/features/{sample}/esm2_8M/layer6.mean.parquet" for sample in ("demo_a", "demo_b")),
        *(f"results/demo/status/{sample}.tsv" for sample in ("demo_a", "demo_b")),
    ]


@pytest.mark.parametrize("sample", ["demo_a", "demo_b"])
def test_the_module_computes_what_fair_esm_does(
    demo: Workspace, fair_esm: Callable[[str], Vectors], sample: str
) -> None:
    [path] = (demo.root / "config/demo").glob(f"{sample}.*")
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        sequences = {record.id: str(record.seq) for record in SeqIO.parse(file, "fasta")}
    table = demo.table(sample, "esm2_8M", "layer6.mean", results="results/demo")
    short = [row for row, name in enumerate(table["id"]) if len(sequences[name]) < 200 and sequences[name].isalpha()]
    vectors = matrix(table)
    for row in short[:5]:
        assert relative_error(vectors[row], fair_esm(sequences[table["id"][row]])[6, "mean"]) <= 1e-5


def test_the_classifier_in_readme_learns_from_the_tables(demo: Workspace) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    [block] = [block for block in blocks if "sklearn" in block]
    assert len([line for line in block.splitlines() if line]) <= 10
    result = subprocess.run([sys.executable, "-c", block], cwd=demo.root, capture_output=True, text=True, check=True)
    assert 0.7 < float(result.stdout.split()[-1]) <= 1


HOST = """
configfile: "config.yaml"
shell.prefix("export HOSTS=prefix; ")

rule all:
    input: "host.txt"

rule ingest:
    input: "results/catalog/a.parquet"
    output: "host.txt"
    shell: "echo $HOSTS > {output}"

"""


@pytest.fixture
def host(work: Workspace) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a workflow with a rule all, a shell prefix and a rule named as one of ours, with such lines below."""
    work.write_samples([("a", work.write_fasta("a.fasta", [plain("p", "MKTAYIAK")]))])
    (work.root / "own.pt").write_bytes(b"x")
    work.write_config({"own": {"weights": "own.pt"}})
    config = yaml.safe_load((work.root / "config.yaml").read_text())
    (work.root / "config.yaml").write_text(yaml.safe_dump({"esmflow": config}))

    def run(lines: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        (work.root / "Snakefile").write_text(HOST + lines)
        return Workspace(work.root, project=work.root).run(*arguments, check=False)

    return run


def test_a_module_below_a_rule_all_leaves_target_prefix_and_names_to_the_host(
    host: Callable[..., subprocess.CompletedProcess[str]], work: Workspace
) -> None:
    result = host(importing())
    assert result.returncode == 0, result.stderr
    assert (work.root / "host.txt").read_text() == "prefix\n"
    assert re.findall(r"(?m)^(?:local)?(?:rule|checkpoint) (\w+):$", result.stderr + result.stdout) == [
        "esmflow_ingest",
        "ingest",
        "all",
    ]
    assert "localrule esmflow_ingest" in result.stderr + result.stdout
    assert not (work.root / "results/plan").exists()


@pytest.mark.parametrize("prefix", ['prefix: "own"', 'replace_prefix: {"results": "own"}'])
def test_a_module_with_a_prefix_is_refused_in_one_line(
    host: Callable[..., subprocess.CompletedProcess[str]], prefix: str
) -> None:
    result = host(importing().replace("    config:", f"    {prefix}\n    config:"), "--dry-run")
    assert result.returncode == 78
    assert "set 'results' in its config" in error_line(result)


def test_a_module_without_its_commands_is_refused_in_one_line(
    host: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    shutil.copy(ROOT / "Snakefile", repository)
    git = ["git", "-C", str(repository), "-c", "user.name=x", "-c", "user.email=x"]
    for arguments in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message=x"], ["tag", "v1"]):
        subprocess.run([*git, *arguments], check=True)
    source = f'gitfile("{repository}", path="Snakefile", tag="v1")'
    result = host(re.sub(r"(?m)(snakefile:).*", rf"\1 {source}", importing()), "--dry-run")
    assert result.returncode == 78
    assert "clone it" in error_line(result)


def test_deployment_other_than_by_conda_leaves_the_commands_the_python_of_snakemake(work: Workspace) -> None:
    work.write_samples([("a", work.write_fasta("a.fasta", [plain("p", "MKTAYIAK")]))])
    (work.root / "own.pt").write_bytes(b"x")
    work.write_config({"own": {"weights": "own.pt"}})
    nowhere = ENVIRONMENT | {"PATH": "/usr/bin:/bin"}
    command = work.command("--sdm", "env-modules", "--", "results/catalog/a.parquet")
    result = subprocess.run(command, cwd=work.root, capture_output=True, text=True, check=False, env=nowhere)
    assert result.returncode == 0, result.stderr

"""The conda environments and containers have the versions that requirements.txt pins."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from snakemake.cli import parse_set_resources
from snakemake.profiles import ProfileConfigFileParser
from workflow import ROOT

ENVS = ROOT / "envs"


def requirements() -> set[str]:
    """What the jobs need; Snakemake itself stays outside of its environments."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return {line for line in lines if not line.startswith(("#", "snakemake"))}


def installed(name: str) -> tuple[list[str], set[str]]:
    """What an environment takes from conda, and what from PyPI."""
    dependencies: list[Any] = yaml.safe_load((ENVS / name).read_text())["dependencies"]
    [pip] = [part["pip"] for part in dependencies if isinstance(part, dict)]
    return [part for part in dependencies if isinstance(part, str)], set(pip)


def test_the_environment_for_cpus_has_what_is_required() -> None:
    _, pip = installed("cpu.yaml")
    assert pip == requirements()


def test_the_environment_for_gpus_has_flash_attn_and_the_pytorch_that_conda_built_it_with() -> None:
    conda, pip = installed("gpu.yaml")
    assert {line for line in requirements() if not line.startswith("torch==")} == pip
    assert any(part.startswith("flash-attn=") for part in conda)


@pytest.mark.parametrize(("lock", "local"), [("requirements.lock", ""), ("requirements-cpu.lock", "+cpu")])
def test_a_lock_has_what_is_required_each_with_checksums(lock: str, local: str) -> None:
    """Lines of a lock: NAME==VERSION, perhaps a marker, and a backslash before the checksums."""
    text = (ROOT / lock).read_text()
    locked = re.findall(r"(?m)^(\S+==\S+).*\\$\n +--hash=sha256:[0-9a-f]{64}", text)
    names = [line.partition("==") for line in requirements()]
    required = {f"{name.replace('_', '-').lower()}=={version}" for name, _, version in names}
    [torch] = [line for line in required if line.startswith("torch==")]
    assert required - {torch} | {torch + local} <= set(locked)
    assert len(locked) == len(re.findall(r"(?m)^\w\S*==", text))


def test_the_environment_for_gpus_has_what_compiles_kernels() -> None:
    conda, _ = installed("gpu.yaml")
    assert {"triton", "gcc", "cuda-cudart-dev"} <= set(conda)


def test_the_container_for_gpus_can_be_made_where_there_is_none() -> None:
    """conda-forge's PyTorch for CUDA is installed only where there is a driver, or where conda is told of one."""
    post = (ENVS / "gpu.def").read_text().split("%post")[1]
    assert re.search(r"export CONDA_OVERRIDE_CUDA=\d+\.\d+\n.*mamba env update", post, re.DOTALL)


@pytest.mark.parametrize(
    ("name", "sources"), [("cpu", ["requirements.txt"]), ("gpu", ["envs/gpu.yaml", "requirements.txt"])]
)
def test_a_container_is_made_from_the_same_files(name: str, sources: list[str]) -> None:
    files, post = (ENVS / f"{name}.def").read_text().split("%files")[1].split("%post")
    copied = dict(line.split() for line in files.strip().splitlines())
    assert list(copied) == sources
    assert all((ROOT / source).is_file() and target in post for source, target in copied.items())


def test_the_profiles_for_slurm_differ_only_in_how_they_ask_for_a_gpu() -> None:
    one, other = (
        yaml.safe_load(Path(ROOT / "profiles" / name / "config.yaml").read_text()) for name in ("slurm", "slurm-gres")
    )
    gpus, gres = (profile.pop("set-resources")["embed"] for profile in (one, other))
    assert one == other
    assert gpus.pop("gpu_model") == gres.pop("gres").split(":")[1]
    assert gres.pop("gpu") == 0
    assert gpus == gres


@pytest.mark.parametrize("name", ["slurm", "slurm-gres"])
def test_snakemake_takes_the_profiles_for_slurm_with_all_lines_deleted_that_may_go(name: str, tmp_path: Path) -> None:
    lines = (ROOT / "profiles" / name / "config.yaml").read_text().splitlines()
    kept = [line for line in lines if not line.strip().startswith(("slurm_", "gpu_model:", "gres:", "gpu:"))]
    assert len(lines) - len(kept) in (3, 4)
    (tmp_path / "config.yaml").write_text("\n".join(kept))
    with (tmp_path / "config.yaml").open() as file:
        profile = ProfileConfigFileParser().parse(file)
    assert parse_set_resources(profile["set-resources"])["embed"]

"""What the documents show does what they say."""

import os
import re
import subprocess
import sys
from pathlib import Path

import reference
from esmflow.config.documents import documents

ROOT = Path(__file__).parents[2]
#: Packages that a machine for the tests on a GPU need not have.
ABSENT = [
    "Bio",
    "duckdb",
    "esm",
    "jsonschema",
    "pydantic",
    "requests",
    "snakemake",
    "transformers",
    "yaml",
    "zstandard",
]


def python(code: str, cwd: Path) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "scripts"), "PYTHONWARNINGS": "ignore"}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_the_engine_s_example_runs(tmp_path: Path) -> None:
    reference.tiny_esm2(tmp_path / "model.pt")
    [example] = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "engine.md").read_text(), re.DOTALL)
    lines = python(example, tmp_path).splitlines()
    assert sorted(lines) == ["first (48,) None", "first (48,) None", "second (48,) None"]


def test_what_is_written_of_the_config_follows_from_its_declaration() -> None:
    for path, text in documents().items():
        assert path.read_text() == text, f"{path} is not what `make documents` writes"


def test_tests_on_a_gpu_need_few_packages(tmp_path: Path) -> None:
    code = f"""
import os, sys
os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
for name in {ABSENT}:
    sys.modules[name] = None
import pytest
sys.path.insert(0, {str(ROOT / "benchmarks")!r})
import gpu
gpu_tests = {str(ROOT / "tests" / "gpu")!r}
sys.exit(pytest.main(["-c", gpu_tests + "/pytest.ini", "-p", "no:cacheprovider", "--collect-only", "-q", gpu_tests]))
"""
    assert "test_16_bit_keeps_its_bound" in python(code, tmp_path)

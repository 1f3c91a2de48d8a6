"""The rooms of the library: which may import which, and that docs/architecture.md draws them as they are."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from conftest import ROOT

LIBRARY = ROOT / "scripts" / "esmflow"
GROUND = {"errors", "files", "progress", "command", "database", "sealed"}
#: What each room may import besides itself.
STANDS_ON = {
    "ground": set(),
    "words": {"ground"},
    "inputs": {"ground", "words"},
    "model": {"ground", "words"},
    "store": {"ground", "words"},
    "engine": {"ground", "words", "model"},
    "plan": {"ground", "words", "store"},
    "tables": {"ground", "words", "store"},
    "worker": {"ground", "words", "store", "model", "engine"},
    "report": {"ground", "words", "store"},
    "watch": {"ground", "words"},
    "config": {"ground", "words", "tables"},
}


def modules() -> dict[str, Path]:
    paths = (path for path in LIBRARY.rglob("*.py") if path.name != "__init__.py")
    return {".".join(path.relative_to(LIBRARY).with_suffix("").parts): path for path in paths}


def room(module: str) -> str:
    top = module.split(".")[0]
    return "ground" if top in GROUND else top if top in STANDS_ON else "words"


def imports(path: Path) -> set[str]:
    """The modules of the library that a module imports when it runs, in functions too."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    known, result = modules(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "esmflow":
            base = node.module.split(".")[1:]
            for name in node.names:
                parts = [".".join([*base, name.name]), ".".join(base)]
                result |= set([part for part in parts if part in known][:1])
    return result


def drawing() -> str:
    """The rooms, each with what it stands on and what is in it."""
    contents: dict[str, list[str]] = {name: [] for name in STANDS_ON}
    for module in sorted(modules()):
        contents[room(module)].append(module.rpartition(".")[2])
    return "\n".join(
        f"    {name:8}{'' if not below else '<- ' + ', '.join(sorted(below, key=list(STANDS_ON).index))}".rstrip()
        + "\n"
        f"            {' '.join(contents[name])}"
        for name, below in STANDS_ON.items()
    )


@pytest.mark.parametrize("module", sorted(modules()))
def test_a_module_imports_only_what_its_room_stands_on(module: str) -> None:
    below = STANDS_ON[room(module)] | {room(module)}
    assert {other for other in imports(modules()[module]) if room(other) not in below} == set()


def test_no_module_imports_itself_by_way_of_others() -> None:
    list(TopologicalSorter({name: imports(path) for name, path in modules().items()}).static_order())


def test_the_architecture_draws_the_rooms_as_they_are() -> None:
    assert drawing() in (ROOT / "docs" / "architecture.md").read_text(), drawing()


@pytest.mark.parametrize("module", ["worker.worker", "plan.plan", "tables.features", "watch"])
def test_pytorch_is_imported_by_nothing_that_does_without(module: str) -> None:
    code = f"import esmflow.{module}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT / "scripts", check=False).returncode == 0


@pytest.mark.parametrize("library", ["pyarrow", "duckdb", "h5py", "torch", "pandas"])
def test_the_rules_import_nothing_slow(library: str) -> None:
    rules = (ROOT / "rules" / "common.smk").read_text().splitlines()
    code = "\n".join(line for line in rules if line.startswith("from esmflow"))
    code += f"\nimport sys; sys.exit({library!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT / "scripts", check=False).returncode == 0

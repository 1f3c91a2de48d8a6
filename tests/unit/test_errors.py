"""Errors that pass: no file is to blame for them, nothing is refused for good, and the same command again may do."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from esmflow.errors import IncompleteError
from esmflow.inputs.samples import read_samples
from esmflow.inputs.variants import read_variants
from esmflow.model import weights
from esmflow.model.state import read_object


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a file whose reading fails with EIO")
@pytest.mark.parametrize(
    "read",
    [read_samples, lambda path: read_variants(path, ["a"]), lambda path: weights.read([path]), read_object],
    ids=["sample sheet", "variants", "weights", "settings"],
)
def test_an_input_on_a_disk_that_fails_is_neither_damaged_nor_wrong(read: Callable[[Path], object]) -> None:
    # Nothing of a process lies at its address 0: EIO.
    with pytest.raises(IncompleteError, match="/proc/self/mem: the disk or the network failed; run again"):
        read(Path("/proc/self/mem"))

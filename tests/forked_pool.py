"""Pools whose processes need not import anew what all of them import, where how they begin is not what is tested."""

import contextlib
import multiprocessing
import os
import sys
from collections.abc import Iterator
from multiprocessing import forkserver

import pytest


@contextlib.contextmanager
def forked_from(*modules: str) -> Iterator[None]:
    """Have the processes of pools forked from one that has these modules: PyTorch takes each that is spawned 3 s."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", *modules])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        forkserver.ensure_running()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multiprocessing, "get_context", lambda _: context)
        yield
    # Another test file may have it begin anew, with other modules.
    forkserver._forkserver._stop()  # type: ignore[attr-defined]

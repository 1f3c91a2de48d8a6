"""Run a Python script as another user of a group: as_user.py UID GID UMASK PROCESSES SCRIPT ARGUMENTS...

What the script imports is read before, since Python itself may lie where only root can read.
PROCESSES: how many that user may have at a time; 0 is as many as now.
"""

import importlib
import os
import resource
import runpy
import sys

if __name__ == "__main__":
    uid, gid, umask, processes = (int(word, 8 if place == 2 else 10) for place, word in enumerate(sys.argv[1:5]))
    sys.argv = sys.argv[5:]
    sys.path.insert(0, os.path.dirname(sys.argv[0]))  # noqa: PTH120
    # Those that are imported only when they are needed.
    for module in ("encodings.utf_8_sig", "encodings.idna", "msgspec", "esmflow.plan.plan"):
        importlib.import_module(module)
    for module in ("spawn", "popen_spawn_posix", "resource_tracker"):
        importlib.import_module(f"multiprocessing.{module}")
    runpy.run_path(sys.argv[0], run_name="imported")
    if processes:
        resource.setrlimit(resource.RLIMIT_NPROC, (processes, processes))
    os.umask(umask)
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
    runpy.run_path(sys.argv[0], run_name="__main__")

"""Commands take one core, however many the machine has."""

import subprocess
import sys
from pathlib import Path

from workflow import ENVIRONMENT, ROOT

#: What light commands do, and then: how many threads there are, and how many each library would start.
COMMAND = """
import os, sys
from pathlib import Path
from esmflow import command, database
import numpy, pyarrow, pyarrow.parquet

table = Path(sys.argv[1])
pyarrow.parquet.write_table(pyarrow.table({"a": range(100_000)}), table)
pyarrow.parquet.read_table(table)
numpy.ones((500, 500)) @ numpy.ones((500, 500))
with database.connect(table) as connection:
    rows = connection.sql(f"SELECT sum(a), current_setting('threads'), current_setting('async_threads') FROM '{table}'")
    print(len(os.listdir("/proc/self/task")), pyarrow.cpu_count(), pyarrow.io_thread_count(), *rows.fetchall()[0][1:])
"""


def test_a_command_starts_a_handful_of_threads(tmp_path: Path) -> None:
    environment = {name: value for name, value in ENVIRONMENT.items() if "THREADS" not in name}
    result = subprocess.run(
        [sys.executable, "-c", COMMAND, tmp_path / "table.parquet"],
        capture_output=True,
        text=True,
        check=True,
        env=environment | {"PYTHONPATH": str(ROOT / "scripts")},
    )
    threads, *settings = map(int, result.stdout.split())
    assert settings == [1, 1, 1, 1]
    assert threads <= 5

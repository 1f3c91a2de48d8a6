"""Commands that end before they could say why: while they import, or by the hand of a library or the system."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest
from workflow import ENVIRONMENT, ROOT, error_line, run_code


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("os.abort()", 75),
        ("os.kill(os.getpid(), 11)", 75),
        ("os.kill(os.getpid(), 9)", 75),
        ('os.execlp("sh", "sh", "-c", "./missing")', 75),
        ("os._exit(65)", 65),
    ],
)
def test_a_rule_tells_of_a_command_that_a_library_has_ended_and_keeps_the_code_of_others(
    tmp_path: Path, end: str, code: int
) -> None:
    """Its command is followed by this."""
    line = f"'{sys.executable}' -c 'import os; {end}' && echo done || sh '{ROOT}/scripts/ended.sh' $? rule.log"
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert done.stdout == ""
    if code == 75:
        line = error_line(done)
        assert "memory is short" in line
        assert ("could not be started" in line) == ("missing" in end)
        assert (tmp_path / "rule.log").read_text() in done.stderr


@pytest.mark.parametrize("megabytes", [180, 250])
def test_short_memory_while_a_command_imports_is_told_in_one_line(megabytes: int) -> None:
    limits = (megabytes << 20,) * 2
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/features.py", "--help"],
        capture_output=True,
        text=True,
        check=False,
        env=ENVIRONMENT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, limits),
    )
    assert done.returncode == 75, done.stderr
    assert "out of memory" in error_line(done)


#: A command that is sent SIGTERM as soon as it answers that.
ENDED_AT_ONCE = """
import os, signal
from esmflow import command

answer = signal.signal


def answer_and_send(number, handler):
    answer(number, handler)
    if number == signal.SIGTERM:
        os.kill(os.getpid(), number)


signal.signal = answer_and_send
command.run(print, command.parser(None))
"""


#: Commands that are sent SIGTERM while DuckDB reads or counts, which makes other errors of it.
DUCKDB = """
import os, signal, threading
from pathlib import Path
import pyarrow as pa
from esmflow import command, database

schema = pa.schema([("number", pa.int64())])


def rows():
    os.kill(os.getpid(), signal.SIGTERM)
    yield pa.record_batch([[1]], schema)


def read(connection):
    connection.register("rows", pa.RecordBatchReader.from_batches(schema, rows()))
    connection.execute("SELECT number FROM rows").fetchall()


def count(connection):
    threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGTERM]).start()
    connection.execute("SELECT count(*) FROM range(1000000000000) WHERE range % 7 = 3").fetchall()


def query(_):
    with database.connect(Path("made")) as connection:
        {query}(connection)


command.run(query, command.parser(None))
"""


@pytest.mark.parametrize("code", [ENDED_AT_ONCE, *(DUCKDB.format(query=name) for name in ("read", "count"))])
def test_a_command_says_in_a_line_that_a_signal_has_ended_it(code: str) -> None:
    result = run_code(code)
    assert result.returncode == 75
    assert error_line(result).endswith("interrupted; what was committed is kept, run the same command again to go on")
    assert not result.stdout

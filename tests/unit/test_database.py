"""What DuckDB is given to work with."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from esmflow import database
from esmflow.errors import WriteError

GROUP = "SELECT count(*) FROM (SELECT key FROM read_parquet($1) GROUP BY key)"


def test_many_rows_have_the_memory_that_it_takes_to_group_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, file = 4_000_000, tmp_path / "keys.parquet"
    keys = pa.py_buffer(np.random.default_rng(0).bytes(32 * rows))
    pq.write_table(pa.table({"key": pa.Array.from_buffers(pa.binary(32), rows, [None, keys])}), file)
    monkeypatch.setattr(database, "MEMORY_MB", 16)
    with database.connect(tmp_path / "made") as connection:
        database.make_room(connection, [file])
        assert connection.execute(GROUP, [str(file)]).fetchall() == [(rows,)]
    with pytest.raises(WriteError, match="no memory"), database.connect(tmp_path / "made") as connection:
        connection.execute(GROUP, [str(file)])

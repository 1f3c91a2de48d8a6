"""Weights that cannot be used stop their model alone."""

import reference
from workflow import Workspace, plain, worst_error, written_times


def test_weights_that_cannot_be_used_stop_their_model_alone_and_are_tried_again(work: Workspace) -> None:
    tiny = reference.tiny_esm2(work.root / "tiny.pt")
    (work.root / "late.pt").write_bytes(b"no weights")
    proteins = [plain("p", "MKTAYIAKQR"), plain("q", "MSILVTRPSP")]
    work.write_samples([("a", work.write_fasta("a.fasta", proteins))])
    work.write_config({name: {"weights": f"{name}.pt"} for name in ("late", "tiny")})
    result = work.run(check=False)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    [line] = [line for line in result.stderr.splitlines() if "error: " in line]
    assert "error: model late: late.pt: " in line
    assert [path.parent.name for path in work.table_files()] == ["tiny"]
    assert work.status("a")["status"].to_list() == ["embedded", "embedded"]

    before = written_times(work.table_files())
    (work.root / "late.pt").write_bytes((work.root / "tiny.pt").read_bytes())
    work.run()
    assert [path.parent.name for path in work.table_files()] == ["late", "tiny"]
    assert written_times(before) == before
    residues = [entry.residues for entry in proteins]
    table = work.table("a", "late", "layer3.mean")
    assert worst_error(table, residues, lambda sequence: reference.represent(tiny, sequence), 3, "mean") <= 1e-5

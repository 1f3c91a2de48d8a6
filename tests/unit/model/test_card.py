"""What weights are, told without computing anything with them."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import reference
import torch
from checkpoints import transformers_esm2
from workflow import ROOT


def models(*paths: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "models.py"), *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": ""})


def test_a_line_tells_what_each_file_is_and_a_wrong_one_leaves_the_others(tmp_path: Path) -> None:
    official, directory, wrong = tmp_path / "esm1b_t33_650M_UR50S.pt", tmp_path / "saved", tmp_path / "wrong.pt"
    reference.tiny_esm1b(official, layers=2, embed_dim=32, heads=4)
    transformers_esm2().to(torch.bfloat16).save_pretrained(directory)
    (directory / "README.md").write_text("---\nlicense: cc-by-4.0\ntags: [biology]\n---\n# A model\n")
    torch.save(torch.nn.Linear(2, 2).state_dict(), wrong)
    result = models(official, wrong, directory)
    assert result.returncode == 65
    [error] = [line for line in result.stderr.splitlines() if "error: " in line]
    assert str(wrong) in error
    head, *lines = [line.split("\t") for line in result.stdout.splitlines()]
    rows = [dict(zip(head, line, strict=True)) for line in lines]
    assert [row["file"] for row in rows] == [str(official), str(directory)]
    shape = ("family", "layers", "embed_dim", "heads", "ffn_dim", "max_residues", "dtype", "licence")
    assert [rows[0][name] for name in shape] == ["ESM-1b", "2", "32", "4", "128", "1022", "float32", "mit"]
    assert [rows[1][name] for name in shape] == ["ESM-2", "3", "48", "4", "96", "any", "bfloat16", "cc-by-4.0"]
    assert rows[0]["sha256"] == hashlib.sha256(official.read_bytes()).hexdigest()
    assert (rows[1]["language_head"], rows[1]["contact_head"]) == ("yes", "yes")

"""The sample sheet as people write it."""

from pathlib import Path

import pytest
from esmflow.errors import ConfigError
from esmflow.inputs.samples import Fasta, read_samples


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a FASTA file a.fa, and in a folder of its own a sheet and b.fa."""
    directory = tmp_path / "here"
    (directory / "folder").mkdir(parents=True)
    monkeypatch.chdir(directory)
    for name in ("a.fa", "folder/b.fa"):
        Path(name).write_text(">a\nMKV\n")
    return directory


def read(content: str) -> dict[str, list[Fasta]]:
    sheet = Path("folder/sheet.txt")
    sheet.write_bytes(content.encode())
    return read_samples(sheet)


def complaint(content: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(content)
    text = str(caught.value)
    assert text.isprintable()
    return text


EXPECTED = {"s": [Fasta(Path("a.fa"))], "t": [Fasta(Path("a.fa"), "protein")]}


@pytest.mark.parametrize("mark", ["", "\ufeff", "\ufeff\n"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    "content",
    [
        pytest.param("sample\tfasta\tkind\ns\ta.fa\nt\ta.fa\tprotein\n", id="tabs"),
        pytest.param("sample,fasta,kind\ns,a.fa,\nt,a.fa,protein\n", id="commas"),
        pytest.param("sample;fasta;kind\ns;a.fa;\nt;a.fa;protein\n", id="semicolons"),
        pytest.param(" Sample \t fasta\tKIND\n s \t a.fa \t\nt\ta.fa\t Protein\n", id="blanks and capitals"),
        pytest.param('"sample", "fasta", "kind"\n"s", "a.fa", ""\n"t", "a.fa", "protein"\n', id="quotes"),
        pytest.param("\nsample\tfasta\tkind\n\t\t\ns\ta.fa\n \t\t\t\nt\ta.fa\tprotein\t\t\n\t\t\n", id="empty rows"),
        pytest.param("kind\tnote\tfasta\tsample\n\tx, y\ta.fa\ts\nprotein\t\ta.fa\tt", id="other columns"),
    ],
)
@pytest.mark.usefixtures("here")
def test_a_sheet_is_read_however_it_is_written(content: str, newline: str, mark: str) -> None:
    assert read(mark + content.replace("\n", newline)) == EXPECTED


def test_a_home_and_variables_in_a_path_are_filled_in(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here))
    monkeypatch.setenv("DATA", str(here / "folder"))
    a, b = Fasta(here / "a.fa"), Fasta(here / "folder" / "b.fa")
    assert read("sample\tfasta\ns\t~/a.fa\ns\t$DATA/b.fa\nt\t${DATA}/b.fa\n") == {"s": [a, b], "t": [b]}


def test_a_file_whose_name_only_looks_like_a_variable_is_that_file(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA", "a.fa")
    Path("$DATA").write_text(">a\nMKV\n")
    assert read("sample\tfasta\ns\t$DATA\n") == {"s": [Fasta(Path("$DATA"))]}


@pytest.mark.parametrize(
    "name", ["{sample}.fa", "{}", "-x.fa", "a b.fa", "*.fa", "[a].fa", "é漢.fa", "a;b,c.fa", "~", "it's"]
)
@pytest.mark.parametrize("delimiter", ["\t", ",", ";"])
@pytest.mark.usefixtures("here")
def test_all_else_in_a_path_is_taken_as_it_is(name: str, delimiter: str) -> None:
    Path(name).write_text(">a\nMKV\n")
    assert read(f'sample{delimiter}fasta\ns{delimiter}"{name}"\n') == {"s": [Fasta(Path(name))]}


@pytest.mark.usefixtures("here")
def test_quotes_within_a_quoted_path_are_doubled() -> None:
    Path('a "b".fa').write_text(">a\nMKV\n")
    assert read('sample\tfasta\ns\t"a ""b"".fa"\n') == {"s": [Fasta(Path('a "b".fa'))]}


def test_a_path_is_looked_for_here_and_then_beside_the_sheet(here: Path) -> None:
    assert read("sample\tfasta\ns\tb.fa\n") == {"s": [Fasta(Path("folder/b.fa"))]}
    Path("b.fa").write_text(">a\nMKV\n")
    assert read("sample\tfasta\ns\tb.fa\n") == {"s": [Fasta(Path("b.fa"))]}


@pytest.mark.parametrize("name", ["$UNSET/a.fa", "~no_such_user/a.fa", "x" * 5000, "a\0b", "folder"])
@pytest.mark.usefixtures("here")
def test_a_path_that_leads_nowhere_is_told_with_its_line(name: str) -> None:
    text = complaint(f"sample\tfasta\ns\ta.fa\nt\t{name}\n")
    assert "line 3: sample t: FASTA" in text
    assert "does not exist" in text


@pytest.mark.parametrize("kind", ["dna", "six", "proteins", "1"])
@pytest.mark.usefixtures("here")
def test_a_kind_that_there_is_not_is_told_with_those_that_there_are(kind: str) -> None:
    text = complaint(f"sample\tfasta\tkind\ns\ta.fa\t{kind}\n")
    assert "line 2" in text
    assert kind in text
    assert "protein" in text


@pytest.mark.usefixtures("here")
def test_a_genetic_code_for_proteins_is_refused() -> None:
    assert "line 3: a genetic code" in complaint("sample\tfasta\tcode\ns\ta.fa\t\nt\ta.fa\t11\n")


@pytest.mark.usefixtures("here")
def test_contigs_have_the_genetic_code_that_is_written_or_that_of_their_kind() -> None:
    content = "sample\tfasta\tkind\tcode\ns\ta.fa\tsix_frame\t\nt\ta.fa\tSix_Frame\t11\n"
    assert read(content) == {"s": [Fasta(Path("a.fa"), "six_frame")], "t": [Fasta(Path("a.fa"), "six_frame", 11)]}


@pytest.mark.parametrize("code", ["7", "8", "0", "-1", "011", "standard"])
@pytest.mark.usefixtures("here")
def test_a_genetic_code_that_there_is_not_is_told_with_those_that_there_are(code: str) -> None:
    text = complaint(f"sample\tfasta\tkind\tcode\ns\ta.fa\tsix_frame\t{code}\n")
    assert f"line 2: six_frame has no genetic code '{code}'; give one of 1, 2, 3, 4, 5, 6, 9, 10, 11" in text


@pytest.mark.parametrize(
    ("content", "line"),
    [
        pytest.param("sample,fasta\ns,a.fa,b.fa\n", 2, id="a comma too many"),
        pytest.param("sample\tfasta\tfasta\ns\ta.fa\tb.fa\n", 2, id="a column twice"),
        pytest.param('sample\tfasta\tnote\ns\ta.fa\t"5 tubes\nt\ta.fa\tx\n', 3, id="an open quote"),
    ],
)
@pytest.mark.usefixtures("here")
def test_values_that_would_be_lost_are_told_with_their_line(content: str, line: int) -> None:
    assert f"line {line}: " in complaint(content)

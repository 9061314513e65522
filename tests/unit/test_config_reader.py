"""Configuration files that nobody would write, but that a command may be given."""

from __future__ import annotations

from pathlib import Path

import pytest

from persia_hpc.config import load_config, parse_set
from persia_hpc.errors import UserError


def test_toml_that_is_nested_too_deeply_is_one_line(tmp_path: Path) -> None:
    for text in ("a = " + "[" * 100_000, "a = " + "{a=" * 10_000, ".".join("a" * 10_000) + " = 1"):
        path = tmp_path / "deep.toml"
        path.write_text(text)
        with pytest.raises(UserError) as error:
            load_config(path)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 1000
        parse_set([text.replace(" = ", "=", 1)])

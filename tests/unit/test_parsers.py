"""What is made of the parser: completion as bash itself does it, and a manual page that troff can read."""

from __future__ import annotations

import argparse
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from persia_hpc.cli import COMMANDS, _make_parser, main
from persia_hpc.commands.completion import script
from persia_hpc.commands.man import page
from persia_hpc.parsers import commands_of, options_of, subcommands
from persia_hpc.preprocess.sources import LOADERS


@pytest.fixture(scope="module")
def parser() -> argparse.ArgumentParser:
    return _make_parser(["man"])


@pytest.fixture(scope="module")
def complete(
    parser: argparse.ArgumentParser, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], list[str]]:
    """What bash offers behind a line."""
    folder = tmp_path_factory.mktemp("bash")
    file = folder / "completion"
    file.write_text(script(parser))

    def offered(line: str) -> list[str]:
        words = line.split(" ")
        quoted = " ".join(f"'{word}'" for word in words)
        program = f"source {file}; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _persia_hpc; "
        done = subprocess.run(
            ["bash", "-uc", program + 'printf "%s\\n" "${COMPREPLY[@]}"'],
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        )
        assert not done.stderr
        return done.stdout.split()

    return offered


def test_every_command_and_source_is_found(parser: argparse.ArgumentParser) -> None:
    found = {words for words, _ in commands_of(parser)}
    assert {("persia-hpc", name) for name in COMMANDS} <= found
    assert {("persia-hpc", "preprocess", name) for name in LOADERS} <= found
    (adult,) = (command for words, command in commands_of(parser) if words[1:] == ("preprocess", "adult"))
    assert "--variant" in [option for action in options_of(adult) for option in action.option_strings]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("persia-hpc tr", ["train"]),
        ("persia-hpc ", list(COMMANDS)),
        ("persia-hpc train --res", ["--resume"]),
        ("persia-hpc train train.toml --launcher ", ["mpiexec", "srun", "none"]),
        ("persia-hpc train train.toml --launcher m", ["mpiexec"]),
        ("persia-hpc preprocess ad", ["adult"]),
        ("persia-hpc preprocess adult --var", ["--variant"]),
        ("persia-hpc preprocess adult --variant p", ["persia_tutorial"]),
        ("persia-hpc checkpoint ver", ["verify"]),
        ("persia-hpc completion ", ["bash", "zsh"]),
        ("persia-hpc train ", []),  # so file names are completed
        ("persia-hpc train --run-dir ", []),
    ],
)
def test_bash_completes(complete: Callable[[str], list[str]], line: str, expected: list[str]) -> None:
    assert complete(line) == expected


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_shell_takes_the_script(shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    assert ("bashcompinit" in text) == (shell == "zsh")
    if shutil.which(shell):
        (tmp_path / "script").write_text(text)
        subprocess.run([shell, "-n", str(tmp_path / "script")], check=True, timeout=20)


def test_the_manual_page_has_all_commands_options_and_exit_codes(
    parser: argparse.ArgumentParser, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["man"]) == 0
    text = capsys.readouterr().out
    assert text == page(parser)
    plain = text.replace("\\-", "-")
    for words, command in commands_of(parser):
        if len(words) > 1:
            assert f".SS {' '.join(words[1:])}\n" in plain
        for action in options_of(command):
            assert len(words) == 1 or all(option in plain for option in action.option_strings)
    assert "75 stopped early" in plain
    known = {".TH", ".ad", ".SH", ".SS", ".B", ".TP", ".PP", ".nf", ".fi"}
    assert {line.split()[0] for line in text.splitlines() if line.startswith((".", "'"))} <= known
    if shutil.which("groff"):
        done = subprocess.run(
            ["groff", "-man", "-Tutf8", "-ww"], input=text, capture_output=True, text=True, check=True
        )
        assert not done.stderr


def test_other_names_of_a_command_are_left_out(parser: argparse.ArgumentParser) -> None:
    (bench,) = (command for words, command in commands_of(parser) if words[1:] == ("bench",))
    assert "feed" not in subcommands(bench)

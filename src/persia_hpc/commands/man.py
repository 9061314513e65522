"""persia-hpc man: the manual page, made of what --help of each command says."""

from __future__ import annotations

import argparse

from persia_hpc.errors import EXIT_OK
from persia_hpc.parsers import commands_of, options_of

SUMMARY = "print the manual page"
DESCRIPTION = """\
Prints a page for man(1) with all commands, their options and examples, as --help has them."""
EXAMPLES = """\
examples:
  persia-hpc man | man -l -
  persia-hpc man > ~/.local/share/man/man1/persia-hpc.1"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares no options: there are none."""


def run(options: argparse.Namespace) -> int:
    """Prints the page."""
    print(page(options.whole_parser), end="")
    return EXIT_OK


def page(parser: argparse.ArgumentParser) -> str:
    """Returns the page of a program in troff's man macros."""
    program = parser.prog
    description = " ".join((parser.description or "").split())
    lines = [
        f'.TH {program.upper()} 1 "" "{program}" "User Commands"',
        ".ad l",
        *(".SH NAME", f"{_text(program)} \\- {_text(description)}"),
        *(".SH SYNOPSIS", f".B {_text(program)}", "COMMAND [ARGUMENT...]"),
        *(".SH DESCRIPTION", _text(description)),
        ".SH COMMANDS",
    ]
    for words, command in commands_of(parser):
        if len(words) == 1:
            continue
        lines += [f".SS {_text(' '.join(words[1:]))}", *_described(command)]
    if parser.epilog:
        lines += [".SH EXIT STATUS", ".nf", *map(_text, parser.epilog.splitlines()), ".fi"]
    return "\n".join(lines) + "\n"


def _described(command: argparse.ArgumentParser) -> list[str]:
    """Returns synopsis, description, arguments, options and examples of a command."""
    usage = " ".join(command.format_usage().split()).removeprefix("usage: ")
    lines = [_text(usage)]
    if command.description:
        lines += [".PP", _text(" ".join(command.description.split()))]
    formatter = command._get_formatter()
    for action in command._actions:
        if isinstance(action, argparse._SubParsersAction | argparse._HelpAction):
            continue
        if action.option_strings and action not in options_of(command):
            continue
        named = formatter._format_action_invocation(action)
        lines += [".TP", f".B {_text(named)}", _text(formatter._expand_help(action) if action.help else "")]
    examples = (command.epilog or "").partition("\n\nexit codes")[0]
    return [*lines, ".PP", ".nf", *map(_text, examples.splitlines()), ".fi"]


def _text(text: str) -> str:
    """Returns text that troff prints as it is."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped

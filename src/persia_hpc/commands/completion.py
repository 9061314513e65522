"""persia-hpc completion: a script that lets a shell complete commands, options and their values."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterable

from persia_hpc.errors import EXIT_OK
from persia_hpc.parsers import commands_of, options_of, subcommands

SUMMARY = "print what lets bash or zsh complete commands"
DESCRIPTION = """\
Prints a script for the shell, which then completes commands, options and values that are words, and file
names elsewhere. Print it anew after an update."""
EXAMPLES = """\
examples:
  persia-hpc completion bash > ~/.local/share/bash-completion/completions/persia-hpc
  echo 'source <(persia-hpc completion bash)' >> ~/.bashrc
  echo 'source <(persia-hpc completion zsh)' >> ~/.zshrc"""
ZSH = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"
# $words: what may come next; the longest path of commands decides, and the option before.
SCRIPT = """\
_persia_hpc() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD - 1]}} at={program} words="" i
    for ((i = 1; i < COMP_CWORD; i++)); do
        case "$at ${{COMP_WORDS[i]}}" in
            {paths}) at="$at ${{COMP_WORDS[i]}}" ;;
        esac
    done
    case "$at $before" in
{values}
        *)
            case "$at" in
{commands}
            esac
            case "$current" in
                -*)
                    case "$at" in
{options}
                    esac
                    ;;
            esac
            ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _persia_hpc {program}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("shell", choices=("bash", "zsh"), help="the shell that is to complete")


def run(options: argparse.Namespace) -> int:
    """Prints the script."""
    print((ZSH if options.shell == "zsh" else "") + script(options.whole_parser), end="")
    return EXIT_OK


def script(parser: argparse.ArgumentParser) -> str:
    """Returns the script for the program of this parser."""
    paths, values, commands, options = [], [], [], []
    for words, command in commands_of(parser):
        path = " ".join(words)
        if len(words) > 1:
            paths.append(f'"{path}"')
        if names := list(subcommands(command)):
            commands.append(_case(16, [path], names))
        shown = [option for action in options_of(command) for option in action.option_strings]
        options.append(_case(24, [path], shown))
        for action in options_of(command):
            if action.choices is not None:
                values.append(_case(8, [f"{path} {o}" for o in action.option_strings], action.choices))
        for action in command._actions:
            if not action.option_strings and action.choices and not hasattr(action, "add_parser"):
                commands.append(_case(16, [path], action.choices))
    return SCRIPT.format(
        program=parser.prog,
        paths=" | ".join(paths),
        values="\n".join(values),
        commands="\n".join(commands),
        options="\n".join(options),
    )


def _case(indent: int, patterns: list[str], words: Iterable[object]) -> str:
    """Returns the line of a `case` that sets $words."""
    quoted = " | ".join(f'"{pattern}"' for pattern in patterns)
    return f"{' ' * indent}{quoted}) words={shlex.quote(' '.join(map(str, words)))} ;;"

"""Looks through argument parsers, for what is made of them: completion of a shell, the manual page."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any


class LateParser(argparse.ArgumentParser):
    """Adds the arguments of a command only when they are wanted: to parse it, or by `commands_of`."""

    add_late: Callable[[argparse.ArgumentParser], None] | None = None

    def fill(self) -> None:
        """Adds the arguments, once."""
        add, self.add_late = self.add_late, None
        if add is not None:
            add(self)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Adds the arguments, then parses."""
        self.fill()
        return super().parse_known_args(args, namespace)


def commands_of(
    parser: argparse.ArgumentParser, words: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    """Yields (its words, parser) of the program, of each command, and of the commands of a command."""
    if isinstance(parser, LateParser):
        parser.fill()
    words = words or (parser.prog,)
    yield words, parser
    for name, command in subcommands(parser).items():
        yield from commands_of(command, (*words, name))


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Returns the commands that a parser has, by name, without other names of the same."""
    found: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                if command not in found.values():
                    found[name] = command
    return found


def options_of(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Returns the options of a parser that its help shows."""
    return [a for a in parser._actions if a.option_strings and a.help != argparse.SUPPRESS]

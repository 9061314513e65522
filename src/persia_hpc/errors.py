"""Defines the errors a user can meet, and the exit code that each one stands for."""

from __future__ import annotations

from typing import Any

EXIT_OK = 0
EXIT_FAILURE = 1
EXIT_USER = 2
EXIT_DATA = 3
EXIT_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: stopped by a signal, to be started again


MOST_CHARACTERS = 2000  # of a message; damaged files have names and values of any length


class PersiaError(Exception):
    """Is the base of all errors raised on purpose; its text is one message for the user."""

    exit_code = EXIT_FAILURE

    def __str__(self) -> str:
        """Returns the message, without the middle of one that nobody would read to its end."""
        text = super().__str__()
        if len(text) <= MOST_CHARACTERS:
            return text
        return f"{text[: MOST_CHARACTERS // 2]} ... {text[-MOST_CHARACTERS // 3 :]}"

    def __reduce__(self) -> tuple[Any, ...]:
        """Returns how pickle makes it again, whatever its class takes: ranks send each other errors."""
        return _again, (type(self), self.args), self.__dict__


class AgreedExit(SystemExit):
    """Leaves a rank where all ranks leave; any other exit of one rank is a failure of the job."""


class UserError(PersiaError):
    """Is raised for bad input or configuration, before training starts (exit code 2)."""

    exit_code = EXIT_USER


class DataError(PersiaError):
    """Is raised for damaged or invalid data found while reading; names file and rows (exit code 3)."""

    exit_code = EXIT_DATA


def needs_package(what: str, package: str) -> UserError:
    """Returns the refusal of what can't be done without a Python package that isn't installed."""
    return UserError(f"{what} needs the Python package {package}, which isn't here: pip install {package}")


class AgreedError(PersiaError):
    """Is an error that every rank raises at the same point."""

    def __init__(self, exit_code: int, message: str):
        super().__init__(message)
        self.exit_code = exit_code


class TrainingEndedError(Exception):
    """Ends a loop of the user's own that asks for more batches after a stop; no error of anybody's."""


def _again(kind: type[PersiaError], arguments: tuple[Any, ...]) -> PersiaError:
    return kind.__new__(kind, *arguments)

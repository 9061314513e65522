"""Defines what trainer 0 asks of the servers that write versions, and what they report."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ExportRequest:
    """Says what the servers are to write, into the directory `path`.

    kind: "begin", a first base, whose rows may go on changing: the version after it has what has changed
    since; "version", what has changed since the version before; "base", all rows as of the newest version.
    step: after which rows are taken. again: the version before couldn't be written by all, so its changes
    belong to this one. attempt: number of a try to write a version; with it the step may be changed.
    """

    kind: str
    number: int
    step: int
    path: str
    again: bool = False
    attempt: int = 0


@dataclass(frozen=True)
class ExportReport:
    """Says what has become of a request on a server: its file, or why there is none.

    step: after which rows were taken. late: a version's step was over when the server heard of it. servers:
    how many of them report.
    """

    kind: str
    number: int
    file: str = ""
    bytes: int = 0
    crc32: int = 0
    error: str = ""
    step: int = 0
    late: bool = False
    servers: int = 1

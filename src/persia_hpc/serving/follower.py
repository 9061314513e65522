"""Holds the newest version of an export directory in mapped files, and goes on to newer ones.

There are two *sides*, each a whole version. One answers; the other is brought up to the newest version, and
then they change places. So an answer is always of one version, and none waits for a new one.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from persia_hpc.checkpoint.manifest import read_schema
from persia_hpc.config import load_config
from persia_hpc.errors import DataError, UserError
from persia_hpc.table_layout import make_layout

from .manifest import newest_link, read_base, read_version
from .names import DENSE, base_name, is_part, version_name
from .parts import map_part
from .side import Parts, Served, Side

_TRIES = 5  # while versions are removed under the reader's hands


class Follower:
    """Follows an export directory. Threads may use `side` while one calls `update`."""

    def __init__(self, directory: Path, prepare: Callable[[Side], None] = lambda _: None) -> None:
        """Opens the newest version. prepare: is called with each side before it answers.

        Raises UserError if the directory has none, DataError if it is damaged.
        """
        self.directory = directory
        self._prepare = prepare
        self._now, self._other = Side(), Side()
        self._link: tuple[str, int, int] | None = None  # that led to the version that answers
        self._parts: dict[tuple[str, str], Parts] = {}  # by export and name; those that a side may still need
        if newest_link(directory) is None:
            raise UserError(_no_version(directory))
        self.update()

    @contextmanager
    def side(self) -> Iterator[Side]:
        """Gives the newest version, which stays as it is meanwhile."""
        while True:
            side = self._now
            with side.lock:
                if side is self._now:
                    yield side
                    return

    @property
    def number(self) -> int:
        """Returns the number of the version that answers."""
        return self._now.number

    def update(self) -> bool:
        """Goes on to the newest version; returns whether there is another one than before.

        Raises DataError if that is damaged, UserError for a format of another package; then the one before
        goes on answering.
        """
        link = newest_link(self.directory)
        if link is None or link == self._link:
            return False
        side = self._other
        with side.lock:
            try:
                self._bring_to_newest(side, link[0])
            except BaseException:
                side.drop()
                raise
        self._now, self._other, self._link = side, self._now, link
        export = side.served.export
        needed = {(export, version_name(n)) for n in range(self._other.number + 1, side.number + 1)}
        needed |= {(s.served.export, base_name(s.served.number)) for s in (side, self._other) if s.number}
        self._parts = {key: parts for key, parts in self._parts.items() if key in needed}
        return side.version != self._other.version

    def _bring_to_newest(self, side: Side, name: str) -> None:
        for left in reversed(range(_TRIES)):
            try:
                self._bring(side, name)
                return
            except FileNotFoundError as error:  # it may have been removed meanwhile
                side.drop()
                link = newest_link(self.directory)
                name = link[0] if link else name
                if not left:
                    text = f"{self.directory}: {name} is not whole: there is no {error.filename}"
                    raise DataError(text) from error
            except OSError as error:
                raise DataError(f"{self.directory}: {name} can't be read ({error.strerror})") from error
            except (ValueError, TypeError, OverflowError) as error:
                raise DataError(f"{self.directory}: rows of {name} don't fit: {error}") from error

    def _bring(self, side: Side, name: str) -> None:
        version = read_version(self.directory / name)
        export, base, number, done = version["export"], version["base"], version["version"], side.number
        if not side.is_on(export, base) or not base <= done <= number:
            manifest = read_base(self.directory / base_name(base), export)
            side.begin(self._served(base, manifest), self._parts_of(base_name(base), manifest))
            done = base
        for n in range(done + 1, number + 1):
            path = self.directory / version_name(n)
            side.add(self._parts_of(path.name, version if n == number else read_version(path, export)))
        side.become(version, self._dense(name, version))
        self._prepare(side)

    def _served(self, base: int, manifest: Mapping[str, Any]) -> Served:
        for side in (self._now, self._other):
            if side.is_on(manifest["export"], base):
                return side.served
        try:
            config, schema = load_config(manifest["config"]), read_schema(manifest)
            layout = make_layout(config, schema)
        except (UserError, LookupError, TypeError, ValueError, AttributeError) as error:
            path = self.directory / base_name(base)
            raise DataError(f"{path}: its configuration or schema can't be read: {error}") from error
        encoding = manifest.get("encoding")
        return Served(manifest["export"], base, manifest["rows"], config, schema, layout, encoding)

    def _parts_of(self, name: str, manifest: Mapping[str, Any]) -> Parts:
        key = manifest["export"], name
        if key not in self._parts:
            folder, files = self.directory / name, manifest["files"]
            self._parts[key] = [map_part(folder / part, files[part]) for part in files if is_part(part)]
        return self._parts[key]

    def _dense(self, name: str, version: Mapping[str, Any]) -> memoryview | None:
        note = version["files"].get(DENSE)
        if note is None:
            return None
        path = self.directory / name / DENSE
        with path.open("rb") as file:
            try:
                mapped = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
            except ValueError:  # it is empty
                mapped = memoryview(b"")
        if len(mapped) != note["bytes"]:
            raise DataError(f"{path} is damaged: it has {len(mapped)} bytes, expected {note['bytes']}")
        return mapped


def _no_version(directory: Path) -> str:
    if not directory.is_dir():
        return f"there is no folder {directory}; expected what a run's export.dir names"
    return (
        f"{directory} has no version of a run: its link `latest` leads to none; expected what export.dir "
        "names, after the run has written there"
    )

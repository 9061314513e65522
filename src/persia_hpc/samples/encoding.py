"""Names and compares encodings: what gave the ids and numbers of a dataset file their meaning.

`preprocess` writes an encoding (vocabularies, means, types, ...) to encoding.json beside the files that it
makes, and each file names it by its digest.
"""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from persia_hpc.durable import replace_whole, replacing
from persia_hpc.errors import UserError
from persia_hpc.patterns import literal_first

LOG = logging.getLogger("persia_hpc")
ENCODING_FILE = "encoding.json"
ENCODING_VERSION = 1
WAY_OUT = (
    "prepare it with --encoding DIR (persia-hpc preprocess table), where DIR is the folder of the training "
    "data or the directory of the run"
)


def encoding_digest(content: Mapping[str, Any]) -> str:
    """Returns the SHA-256 digest of an encoding in hexadecimal digits; keys may have any order."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def short(digest: str) -> str:
    """Returns the beginning of a digest, for messages; of another text only what can be printed."""
    return "".join(c for c in digest[:12] if c.isprintable())


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns an encoding as it is written: the content with its version and, in `digest`, its digest."""
    content = {"version": ENCODING_VERSION, **content}
    content.pop("digest", None)
    return {"digest": encoding_digest(content), **content}


def write_encoding(directory: Path, encoding: Mapping[str, Any]) -> None:
    """Writes a sealed encoding into a folder, atomically."""
    replace_whole(directory / ENCODING_FILE, json.dumps(encoding, indent=1).encode())


def read_encoding(path: Path) -> dict[str, Any]:
    """Returns the encoding in a file, or in the file encoding.json of a folder; its digest is in `digest`.

    Raises UserError if there is none, if it isn't as it was written, or if this version can't read it.
    """
    file = path / ENCODING_FILE if path.is_dir() else path
    try:
        content = json.loads(file.read_bytes())
        digest = content.pop("digest")
        whole = encoding_digest(content) == digest
    except OSError as error:
        raise UserError(
            f"{file}: can't be read ({error.strerror}); expected a folder of data that `preprocess` made, "
            f"the directory of a run that was trained on such data, or an {ENCODING_FILE}"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{file}: isn't an encoding ({type(error).__name__}); expected an {ENCODING_FILE} that "
            "`preprocess` wrote"
        ) from error
    if not whole:
        raise UserError(
            f"{file}: isn't as `preprocess` wrote it: its content doesn't have the digest "
            f"{short(str(digest))}; copy it again, or prepare the data again"
        )
    if content.get("version") != ENCODING_VERSION:
        raise UserError(
            f"{file}: got encoding version {content.get('version')}, expected {ENCODING_VERSION}; use the "
            "persia-hpc that wrote it"
        )
    return {"digest": digest, **content}


def check_encodings(files: Iterable[tuple[str, str | None]], whose: str, expected: str | None) -> None:
    """Checks that files name the encoding `expected`, that of `whose`; warns of what can't be compared.

    files: path and named digest of each; None for one that names no encoding.
    Raises UserError for a file that names another encoding.
    """
    unknown = []
    for path, digest in files:
        if digest is not None and expected is not None and digest != expected:
            raise UserError(
                f"{path}: got encoding {short(digest)}, expected {short(expected)} as of {whose}: its ids or "
                f"numbers mean other values; {WAY_OUT}"
            )
        if (digest is None) != (expected is None):
            unknown.append(path)
    if unknown:
        some = unknown[0] + (f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else "")
        one, other = (whose, some) if expected is None else (some, whose)
        LOG.warning(
            "%s names no encoding, %s does: whether their ids and numbers mean the same can't be checked "
            "(docs/dataset_format.md, Encodings)",
            one,
            other,
        )


def keep_encoding(patterns: Iterable[str], digest: str | None, directory: Path) -> None:
    """Copies the encoding with this digest into a directory, if one lies beside the files of `patterns`.

    A run keeps it so, for data that is prepared later.
    """
    if digest is None:
        return
    for folder in dict.fromkeys(os.path.dirname(path) for path in matches(patterns)):
        found = Path(folder, ENCODING_FILE)
        if stated_digest(found) == digest:
            try:
                with replacing(directory / ENCODING_FILE) as partial:
                    shutil.copyfile(found, partial)
            except OSError as error:  # no reason to end a run: the data's folder has it
                LOG.warning("%s can't be kept in %s: %s", found, directory, error)
            return


def stated_digest(file: Path) -> str | None:
    """Returns the digest with which an encoding begins, without reading the rest; None if there is none."""
    try:
        with file.open("rb") as stream:
            begin = re.match(rb'\{\s*"digest": "([0-9a-f]{64})"', stream.read(128))
    except OSError:
        return None
    return begin[1].decode() if begin else None


def matches(patterns: Iterable[str]) -> Iterator[str]:
    """Yields the paths that match patterns of data files, in any order."""
    for pattern in map(os.path.expanduser, patterns):
        yield from glob.iglob(literal_first(pattern), recursive=True)

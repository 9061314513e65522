"""Damages one file of a folder: bytes, text, JSON, HDF5, PyTorch archives, and what lies in a file's place.

Every function takes the path of the file and a random generator, changes the file, and returns in words what
it did. The same generator state gives the same change.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Mutator = Callable[[Path, random.Random], str]

CONTROL = "\x1b[31mred\x07"
# In place of a number or a word of a text file.
WORDS = (
    *("", "-1", "0", "1e400", "NaN", "nan", "inf", "-inf", "Infinity", "9223372036854775808", "1" * 400),
    *("18446744073709551616", "-0.0", "1e308", "0x10", "1_000", "true", "null", '""', "[]", "{}", "[[1]]"),
    *("'", '"', "\u202e", "\ufeff", "\u00e9", CONTROL, "\x00", "\r", "a/b", ".", "[" * 2000, "{a=" * 2000),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**400, 0.5, 1e308, float("nan"), float("inf")),
    *("", "x", "1", "a/b", "../x", ".", CONTROL, "\u202e", "\ud800", "\x00", "x" * 5000),
    *([], {}, [1], [[1]], {"a": 1}, [None], ["x"], {"": {}}),
)


def flip_bits(path: Path, draw: random.Random) -> str:
    """Flips one to eight bits."""
    data = bytearray(path.read_bytes())
    places = sorted(draw.randrange(8 * len(data)) for _ in range(draw.choice((1, 1, 1, 8))))
    for place in places:
        data[place // 8] ^= 1 << place % 8
    path.write_bytes(data)
    return f"bits {places} of {8 * len(data)}"


def truncate(path: Path, draw: random.Random) -> str:
    """Cuts off the end, often all but the beginning or only the last bytes."""
    size = path.stat().st_size
    keep = draw.choice((0, draw.randrange(size), draw.randrange(min(size, 200)), size - 1))
    os.truncate(path, keep)
    return f"{keep} of {size} bytes left"


def zero_block(path: Path, draw: random.Random) -> str:
    """Overwrites a block with zeros or ones."""
    data = bytearray(path.read_bytes())
    begin, end = _block(data, draw)
    value = draw.choice((0, 0, 0xFF))
    data[begin:end] = bytes([value]) * (end - begin)
    path.write_bytes(data)
    return f"bytes {begin} to {end} are {value}"


def swap_blocks(path: Path, draw: random.Random) -> str:
    """Exchanges two blocks, or copies one over the other."""
    data = bytearray(path.read_bytes())
    size = draw.choice((8, 64, 512, 4096))
    a, b = (size * draw.randrange(max(1, len(data) // size)) for _ in range(2))
    first, second = bytes(data[a : a + size]), bytes(data[b : b + size])
    data[a : a + len(second)] = second
    both = draw.random() < 0.7
    if both:
        data[b : b + len(first)] = first
    path.write_bytes(data)
    return f"blocks of {size} at {a} and {b} {'exchanged' if both else 'equal'}"


def insert_bytes(path: Path, draw: random.Random) -> str:
    """Inserts or removes some bytes."""
    data = bytearray(path.read_bytes())
    at = draw.randrange(len(data) + 1)
    if draw.random() < 0.5:
        some = draw.randbytes(draw.choice((1, 8, 100)))
        data[at:at] = some
        what = f"{len(some)} bytes inserted"
    else:
        end = min(len(data), at + draw.choice((1, 8, 100)))
        del data[at:end]
        what = f"{end - at} bytes removed"
    path.write_bytes(data)
    return f"{what} at {at}"


def _block(data: bytearray, draw: random.Random) -> tuple[int, int]:
    size = min(len(data), draw.choice((1, 8, 64, 512, 4096, 65536)))
    begin = draw.randrange(len(data) - size + 1)
    return begin, begin + size


def change_words(path: Path, draw: random.Random) -> str:
    """Replaces one to three numbers or words of a text."""
    text = path.read_bytes().decode("utf-8", "surrogateescape")
    changes = []
    for _ in range(draw.choice((1, 1, 3))):
        found = list(re.finditer(r"[\w.+-]+|\"[^\"\n]*\"", text))
        if not found:
            break
        at, word = draw.choice(found), draw.choice(WORDS)
        text = text[: at.start()] + word + text[at.end() :]
        changes.append(f"{at.group()[:40]!r} is {word[:40]!r}")
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    return ", ".join(changes) or "nothing"


def change_lines(path: Path, draw: random.Random) -> str:
    """Removes, repeats, exchanges or joins lines, or ends them otherwise."""
    lines = path.read_bytes().splitlines(keepends=True)
    if not lines:
        return "nothing"
    what = draw.choice(("remove", "repeat", "exchange", "cut", "ends", "not UTF-8", "blank"))
    at, other = draw.randrange(len(lines)), draw.randrange(len(lines))
    if what == "remove":
        del lines[at]
    elif what == "repeat":
        lines[at:at] = [lines[at]] * draw.choice((1, 3))
    elif what == "exchange":
        lines[at], lines[other] = lines[other], lines[at]
    elif what == "cut":
        lines[at] = lines[at][: draw.randrange(len(lines[at]) + 1)]
    elif what == "ends":
        end = draw.choice((b"\r\n", b"\r", b" \n", b",\n"))
        lines = [line.rstrip(b"\n") + end for line in lines]
    elif what == "blank":
        lines[at:at] = [b"\n"]
    else:
        lines[at] = b"\xff\xfe" + lines[at]
    path.write_bytes(b"".join(lines))
    return f"{what}, line {at + 1} of {len(lines)}"


def change_json(path: Path, draw: random.Random) -> str:
    """Changes the structure of a JSON file, or of one line of a file of JSON lines."""
    lines = [path.read_text()] if path.suffix == ".json" else path.read_text().splitlines()
    at = draw.randrange(len(lines))
    tree = json.loads(lines[at])
    done = change_tree(tree, draw)
    lines[at] = json.dumps(tree)
    if draw.random() < 0.08:
        deep = draw.choice((500, 100_000))
        lines[at], done = '{"event": ' + "[" * deep + "]" * deep + "}", f"nested {deep} times"
    path.write_text("\n".join(lines) + "\n")
    return done


def change_tree(tree: Any, draw: random.Random) -> str:
    """Replaces, removes, renames or adds an entry anywhere in lists and dictionaries."""
    nodes = [(node, key, where) for node, key, where in _entries(tree, "")]
    if not nodes:
        return "nothing"
    node, key, where = draw.choice(nodes)
    what = draw.choice(("replace", "replace", "replace", "remove", "rename", "add"))
    if what == "remove":
        del node[key]
        return f"{where} removed"
    value = draw.choice(VALUES)
    if what == "replace" or isinstance(node, list):
        node[key] = value
        return f"{where} is {str(value)[:40]!r}"
    name = draw.choice(("x", "", "a/b", CONTROL, "\u202e", str(key) + "2"))
    node[name] = node.pop(key) if what == "rename" else value
    return f"{where} {'is now' if what == 'rename' else 'beside'} {name!r}"


def _entries(node: Any, where: str) -> list[tuple[Any, Any, str]]:
    pairs = list(node.items() if isinstance(node, dict) else enumerate(node))
    found = [(node, key, f"{where}/{key}") for key, _ in pairs]
    for key, value in pairs:
        if isinstance(value, (dict, list)):
            found += _entries(value, f"{where}/{key}")
    return found


def change_torch(path: Path, draw: random.Random) -> str:
    """Changes what torch.save has written: entries, shapes, values."""
    tree = torch.load(path, weights_only=True)
    weights = tree.get("model", {})
    if weights and draw.random() < 0.5:
        name = draw.choice(sorted(weights))
        value = weights[name]
        change = draw.choice(("NaN", "shape", "dtype", "other"))
        weights[name] = {
            "NaN": torch.full_like(value, torch.nan),
            "shape": torch.zeros(*value.shape, 2),
            "dtype": value.to(torch.complex64),
            "other": value + 1,
        }[change]
        done = f"{name}: {change}"
    else:
        done = change_tree(tree, draw)
    torch.save(tree, path)
    return done


def in_its_place(path: Path, draw: random.Random) -> str:
    """Puts nothing, a folder, a link or another file where the file was; `outside` is beside the folder."""
    outside = Path("..") / "outside"
    what = draw.choice(
        ("nothing", "empty", "folder", "full folder", "dangling", "loop", "file", "dir", "other")
    )
    others = [p for p in sorted(path.parent.iterdir()) if p.is_file() and p != path]
    depth = Path(*[".."] * (len(path.parts) - 1))
    if what == "other" and others:
        other = draw.choice(others)
        shutil.copyfile(other, path)
        return f"a copy of {other.name}"
    path.unlink()
    if what == "empty":
        path.touch()
    elif what in ("folder", "full folder"):
        path.mkdir()
        if what == "full folder":
            (path / "x").touch()
    elif what in ("dangling", "loop", "file", "dir"):
        target = {"dangling": Path("nowhere"), "loop": Path(path.name)}.get(what, depth / outside)
        path.symlink_to(target / "file" if what == "file" else target)
    return what


BYTES: tuple[Mutator, ...] = (flip_bits, flip_bits, truncate, zero_block, swap_blocks, insert_bytes)

"""Refuses HDF5 files that take data from elsewhere, or whose data was never written.

HDF5 follows an external link, a virtual dataset and external storage to any file that its reader may open,
and what is missing there, or was never written, reads as zeros: both without a word.
"""

from __future__ import annotations

import math
import os
from collections import deque

import h5py
from h5py import h5d, h5f, h5g, h5l, h5o

from persia_hpc.errors import UserError

DEPTH = 3  # /ids/<feature>/values; readers open nothing deeper
REMEDY = "copy its data into one file (h5repack, or h5py), or prepare it again"
UNFINISHED = "its writer or a copy hasn't finished: copy or prepare it again"


class StorageError(UserError):
    """Is raised for data that isn't where it should be; has the problem without its remedy, too."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem}; {remedy}")
        self.problem = problem


def check_contained(file: h5py.File) -> None:
    """Checks that all groups and datasets, as deep as readers look, are inside of this file.

    Opens none of the files that it refers to.
    Raises StorageError, which names file and dataset, for external links, soft links to other links, external
    storage and virtual datasets.
    """
    path = os.fsdecode(file.filename)
    seen: set[int] = set()  # groups: hard links can make circles
    # The shallowest first, so that no group is left at less than the depth at which it may be opened.
    waiting = deque([(h5g.open(file.id, b"/"), "", DEPTH)])
    while waiting:
        group, prefix, depth = waiting.popleft()
        for name in group:
            where = f"{prefix}/{name.decode(errors='replace')}"
            if not _leads_inside(f"{path}: {where}", group, name):
                continue  # a soft link to nothing; whoever needs the dataset says that it is missing
            found = h5o.open(group, name)
            if isinstance(found, h5d.DatasetID):
                _check_storage(f"{path}: {where}", found)
            elif isinstance(found, h5g.GroupID) and depth > 1:
                address = h5o.get_info(found).addr
                if address not in seen:
                    seen.add(address)
                    waiting.append((found, where, depth - 1))


def _leads_inside(what: str, group: h5g.GroupID, name: bytes) -> bool:
    """Says whether a link leads to an object of the same file.

    Raises StorageError for links that lead out, and for soft links by way of other links.
    """
    kind = group.links.get_info(name).type
    if kind == h5l.TYPE_HARD:
        return True
    if kind != h5l.TYPE_SOFT:
        raise StorageError(f"{what}: got a link into another file, expected the data in this one", REMEDY)
    target: bytes = group.links.get_val(name)
    at = h5g.open(group, b"/") if target.startswith(b"/") else group
    steps = [step for step in target.split(b"/") if step not in (b"", b".")]
    for i, step in enumerate(steps, 1):
        if not at.links.exists(step):
            return False
        if at.links.get_info(step).type != h5l.TYPE_HARD:
            raise StorageError(
                f"{what}: got a link to a link, expected one to a dataset of this file", REMEDY
            )
        if i < len(steps):
            if h5o.get_info(at, step).type != h5o.TYPE_GROUP:
                return False
            at = h5g.open(at, step)
    return bool(steps)


def check_stored(what: str, dataset: h5d.DatasetID) -> None:
    """Checks that all of a dataset's data is in its file, and written; `what` names it in messages.

    Raises StorageError if not.
    """
    _check_storage(what, dataset)
    check_written(what, dataset)


def _check_storage(what: str, dataset: h5d.DatasetID) -> None:
    made = dataset.get_create_plist()
    layout = made.get_layout()
    if layout == h5d.VIRTUAL:
        raise StorageError(
            f"{what}: got a virtual dataset, which takes its data from other datasets, expected the data in "
            "this one",
            REMEDY,
        )
    if layout == h5d.CONTIGUOUS and made.get_external_count():
        raise StorageError(
            f"{what}: got external storage, which takes the data from another file, expected the data in "
            "this one",
            REMEDY,
        )


def check_written(what: str, dataset: h5d.DatasetID) -> None:
    """Checks that all of a dataset's data is in its file; `what` names both in messages.

    Takes less than a microsecond for each chunk.
    Raises StorageError if not: HDF5 would read the rest as zeros, or fail later.
    """
    shape = dataset.shape
    if 0 in shape:
        return
    made = dataset.get_create_plist()
    layout = made.get_layout()
    begun = f"{what}: got a dataset of shape {shape}"
    if layout == h5d.CHUNKED:
        needed = math.prod(-(-length // chunk) for length, chunk in zip(shape, made.get_chunk(), strict=True))
        got = dataset.get_num_chunks()
        if got != needed:
            raise StorageError(f"{begun} with {got} of {needed} chunks written, expected all", UNFINISHED)
    elif layout == h5d.CONTIGUOUS:
        begin = dataset.get_offset()
        if begin is None:
            raise StorageError(f"{begun} with nothing written, expected all of it", UNFINISHED)
        end = begin + math.prod(shape) * dataset.get_type().get_size()
        path = h5f.get_name(dataset)
        if end > os.path.getsize(path):
            raise StorageError(f"{begun}, which reaches beyond the end of the file", UNFINISHED)

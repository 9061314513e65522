"""Defines the names inside a dataset file and opens it; docs/dataset_format.md describes the format."""

from __future__ import annotations

import glob
import logging
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
from h5py import h5z

from persia_hpc.durable import ErrorKeeper
from persia_hpc.errors import UserError, needs_package

from .containment import check_contained


def _import_filters() -> ModuleType | None:
    """Returns hdf5plugin, which registers its filters with HDF5, for reading too; None if it isn't installed.

    It looks for them by a pattern that begins with its own folder as it is, so that brackets in a name there
    hide all of them (hdf5plugin 7.1.0).
    """
    log = logging.getLogger("hdf5plugin._utils")
    log.disabled = True  # of each filter that it doesn't find
    try:
        import hdf5plugin
    except ModuleNotFoundError:
        return None
    finally:
        log.disabled = False
    if not hdf5plugin.get_config().registered_filters:
        from hdf5plugin import _utils

        vars(_utils).update(PLUGIN_PATH=glob.escape(hdf5plugin.PLUGIN_PATH))
        hdf5plugin.register()
    return hdf5plugin


hdf5plugin = _import_filters()

IDS = "ids"
VALUES = "values"
OFFSETS = "offsets"
WEIGHTS = "weights"
DENSE = "dense"
LABEL = "label"
WEIGHT = "weight"
GROUP = "group"
TIME = "time"

# Root attributes. Only schema_version must be there; the reader checks values that no attribute vouches for.
SCHEMA_VERSION_ATTRIBUTE = "schema_version"
NUM_SAMPLES = "num_samples"
FEATURE_NAMES = "feature_names"
DENSE_NAMES = "dense_names"
LABEL_NAMES = "label_names"
DENSE_FINITE = "dense_finite"
LABEL_MIN = "label_min"
LABEL_MAX = "label_max"
LABEL_BINARY = "label_binary"
LABEL_KNOWN = "label_known"
WEIGHT_MIN = "weight_min"
WEIGHT_MAX = "weight_max"
SOURCE = "source"
PREPROCESSING = "preprocessing"
CREATED_BY = "created_by"
ENCODING = "encoding"

COMPRESSIONS = ("lz4", "gzip", "none")
# Filters that hdf5plugin brings and HDF5 itself lacks, by their registered numbers.
_OF_PLUGIN = (307, 32001, 32004, 32008, 32013, 32015, 32017, 32018, 32024, 32026, 32028, 32033)
# Settings of scale-offset: H5Z_SO_INT, H5Z_SO_INT_MINBITS_DEFAULT (as many bits as each chunk needs).
_LOSSLESS = (2, 0)


def default_compression() -> str:
    """Returns "lz4", or "none" where hdf5plugin isn't installed: gzip takes three times as long to read."""
    return "none" if hdf5plugin is None else "lz4"


def compression_options(compression: str) -> dict[str, Any]:
    """Returns the arguments of `create_dataset` for one of `COMPRESSIONS`, always with checksums.

    Raises UserError for any other name, and for "lz4" where hdf5plugin isn't installed.
    """
    if compression == "lz4":
        if hdf5plugin is None:
            raise needs_package('compression "lz4"', "hdf5plugin")
        shuffle = hdf5plugin.Blosc2.SHUFFLE
        return {"fletcher32": True, **hdf5plugin.Blosc2(cname="lz4", clevel=5, filters=shuffle)}
    if compression == "gzip":
        return {"fletcher32": True, "compression": "gzip", "compression_opts": 1, "shuffle": True}
    if compression == "none":
        # zlib's container without compression, which checks its Adler-32 sum: the fletcher32 sum of zeros is
        # zero, so a chunk that a disk has lost would pass it. It is quicker to check, too.
        return {"compression": "gzip", "compression_opts": 0}
    raise UserError(f"compression: got {compression!r}, expected one of {', '.join(COMPRESSIONS)}")


def check_filters(what: str, dataset: Any) -> None:
    """Checks the filters that a dataset was written with: HDF5 has them, and they give back what was written.

    what: the file and the dataset, for the message.
    dataset: of h5py's low-level interface.
    Raises UserError, which says what has to be installed, or how the file has to be written.
    """
    filters = dataset.get_create_plist()
    for i in range(filters.get_nfilters()):
        code, _, settings, label = filters.get_filter(i)
        if code == h5z.FILTER_SCALEOFFSET and tuple(settings[:2]) != _LOSSLESS:
            # It makes a number of NaN (findings/hdf5_scale_offset_makes_numbers_of_nan.sh), and cuts integers
            # that have more bits: what is read shows neither.
            raise UserError(
                f"{what}: stored with HDF5's scale-offset filter, in which missing values (NaN) and large "
                "integers become other numbers; write the file again without it, integers perhaps with "
                "scaleoffset=0, which keeps them all"
            )
        if h5z.filter_avail(code):
            continue
        if hdf5plugin is None and code in _OF_PLUGIN:
            raise needs_package(f"{what}: its compression (HDF5 filter {code})", "hdf5plugin")
        raise UserError(
            f"{what}: compressed with HDF5 filter {code} ({label.decode(errors='replace')}), which "
            "isn't installed; install its plugin or repack the file with h5repack"
        )


def fixed_strings(texts: str | Sequence[str]) -> npt.NDArray[np.bytes_]:
    """Returns strings of one length in UTF-8, as attributes hold them.

    Strings of any length would lie in HDF5's global heap, which has no checksum: damage there renames
    columns, or lets HDF5 read for ever.
    """
    encoded = np.char.encode(np.array(texts, np.str_), "utf-8")
    return encoded.astype(h5py.string_dtype("utf-8", max(1, encoded.dtype.itemsize)))


def open_to_read(path: str) -> h5py.File:
    """Opens a file read-only, if it refers to no other file.

    Raises OSError as h5py does, UserError if the file isn't contained in itself (`samples.containment`).
    """
    file = _open(path)
    try:
        check_contained(file)
    except BaseException as error:
        file.close()
        if isinstance(error, KeyError | RuntimeError | ValueError):  # h5py's words for damaged structure
            raise OSError(str(error)) from error
        raise
    return file


def _open(path: str) -> h5py.File:
    # Locks fail on many network file systems, and a reader of finished files needs none. But HDF5 refuses to
    # open a file twice in one process with different lock settings, so then find those of its other user.
    for locking in (False, None, True):
        try:
            return h5py.File(path, "r", locking=locking)
        except OSError as error:
            if "lock" not in str(error):
                raise
    return h5py.File(path, "r", locking="best-effort")


def create(target: ErrorKeeper) -> h5py.File:
    """Begins a file, in a format that HDF5 1.10 and later read.

    Raises OSError as h5py does.
    """
    return h5py.File(target, "w", libver=("v110", "v110"))

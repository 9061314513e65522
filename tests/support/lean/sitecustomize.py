"""Hides the packages that not every machine has from each Python that is started with this folder first on
PYTHONPATH, ranks included.
"""

import sys
from importlib.machinery import PathFinder

HIDDEN = ("hdf5plugin", "horovod", "polars", "_polars_runtime_32", "matplotlib")


class Hiding(PathFinder):
    """Finds all modules but the hidden ones."""

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        if fullname.partition(".")[0] in HIDDEN:
            return None
        return super().find_spec(fullname, path, target)


sys.meta_path = [Hiding if finder is PathFinder else finder for finder in sys.meta_path]

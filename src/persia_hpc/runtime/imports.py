"""Imports large packages without the garbage collector's work, and without the processes that they start."""

from __future__ import annotations

import contextlib
import gc
import platform
import sys
from collections.abc import Iterator
from importlib import import_module


def import_quickly(name: str) -> None:
    """Imports a module, unless it has been imported; for processes whose program is ours.

    A large package makes a million objects that live to the end. The collector would go through them again
    and again while they are made, and once more when the process ends, which for PyTorch is a third of what
    its import and exit cost. So it rests meanwhile, and what there is afterwards is left out for good.
    """
    if name in sys.modules:
        return
    enabled = gc.isenabled()
    gc.disable()
    try:
        with _nobody_asks_for_the_processor():
            import_module(name)
    finally:
        gc.freeze()
        if enabled:
            gc.enable()


@contextlib.contextmanager
def _nobody_asks_for_the_processor() -> Iterator[None]:
    """Keeps the name of the processor from being looked up, for which Python starts `uname -p`.

    h5py looks at the machine in a way that looks up all of `platform.uname()`.
    """
    known = vars(platform.uname())
    if "processor" in known:
        yield
        return
    known["processor"] = ""
    try:
        yield
    finally:
        del known["processor"]

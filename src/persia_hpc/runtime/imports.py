"""Imports large packages without the work that Python's garbage collector makes of it."""

from __future__ import annotations

import gc
import sys
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
        import_module(name)
    finally:
        gc.freeze()
        if enabled:
            gc.enable()

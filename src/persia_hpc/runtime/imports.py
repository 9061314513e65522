"""Imports large packages without the garbage collector's work, and without the processes that they start."""

from __future__ import annotations

import contextlib
import gc
import platform
import sys
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

_META = "torch._meta_registrations"


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


def import_torch(*, eager: bool) -> None:
    """Imports PyTorch as `import_quickly` does.

    eager: leave out, until it is asked for, how operators work on tensors without data: a quarter of the
    import, of use only to torch.compile and to meta tensors. Not where code of a user's runs.
    """
    left_out = _LeftOut(_META)
    if not eager or "torch" in sys.modules:
        import_quickly("torch")
        return
    sys.modules[_META] = left_out
    try:
        import_quickly("torch")
    finally:
        left_out.forget()


class _LeftOut(ModuleType):
    """Stands in for a module during an import; becomes the module when one of its names is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # of all modules, such as `__file__`
            raise AttributeError(name)
        self.forget()
        return getattr(import_module(self.__name__), name)

    def forget(self) -> None:
        """Lets the next import find the module itself."""
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        package, _, child = self.__name__.rpartition(".")
        if vars(sys.modules.get(package, self)).get(child) is self:
            delattr(sys.modules[package], child)


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

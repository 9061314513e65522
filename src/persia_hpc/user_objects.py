"""Loads a user's object by its import path, "module:name"."""

from __future__ import annotations

import difflib
import importlib
import sys
import traceback
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from types import ModuleType

from persia_hpc.config import Config
from persia_hpc.errors import UserError


def named_code(config: Config) -> dict[str, str]:
    """Returns what of the user's own a configuration names, by key: paths as `load_object` takes them."""
    named = {
        "model": config.model.class_name,
        "data.transform": config.data.transform or "",
        "train.loss" if not config.tasks else "tasks": ", ".join(config.loss_names),
        "train.metrics": ", ".join(config.train.metrics),
    }
    named = {what: ", ".join(p for p in paths.split(", ") if ":" in p) for what, paths in named.items()}
    return {what: paths for what, paths in named.items() if paths}


def load_object(path: str, what: str) -> object:
    """Returns the object that "module:name" names.

    The named module is looked for in the current directory first. What it imports itself is found there too,
    but after everything else: a file beside it never takes the place of one of Python or of an installed
    package. what: what the object is for ("model", "loss", ...), for messages.

    Raises UserError when the path has another form, the module can't be found or fails while it is imported,
    or it has no such name.
    """
    module_name, colon, name = path.partition(":")
    if not colon or not name or not all(part.isidentifier() for part in module_name.split(".")):
        hint = ""
        if colon and module_name.endswith(".py"):
            hint = f"; for a file write {'.'.join(Path(module_name).with_suffix('').parts)}:{name}"
        raise UserError(f'{what} {path!r}: expected "module:name", like "my_model:TwoTower"{hint}')
    try:
        module = _import(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise UserError(f"{what} {path!r}: its module does not import: {describe(error)}") from error
        raise UserError(
            f"{what} {path!r}: no module {module_name!r} in {Path.cwd()} or on Python's path; start "
            f"from the directory that holds it, or set PYTHONPATH"
        ) from error
    except Exception as error:
        raise UserError(f"{what} {path!r}: its module does not import: {describe(error)}") from error
    try:
        return getattr(module, name)
    except AttributeError:
        own = [n for n, v in vars(module).items() if getattr(v, "__module__", None) == module.__name__]
        close = difflib.get_close_matches(name, own, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"it defines: {', '.join(own) or 'nothing'}"
        if module_name.partition(".")[0] in sys.stdlib_module_names:
            hint = "it is a module of Python's own; give yours another name"
        raise UserError(
            f"{what} {path!r}: {getattr(module, '__file__', module_name)} has no {name!r}; {hint}"
        ) from None


def describe(error: BaseException) -> str:
    """Returns the error in one line, with the last file and line outside of installed packages, if any."""
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg} ({error.filename}:{error.lineno})"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<")]
    own = [f for f in frames if "site-packages" not in Path(f.filename).parts] or frames
    where = f" ({own[-1].filename}:{own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{where}"


def module_file(path: str) -> str:
    """Returns the file of the module that "module:name" would be imported from, '' if there is none.

    Imports nothing. Of a package it is the file, or else the folder, of its outermost module.
    """
    top = path.partition(":")[0].partition(".")[0]
    try:
        spec = _in_current_directory(top) or find_spec(top)
    except (ImportError, ValueError):
        return ""
    if spec is None:
        return ""
    return spec.origin or next(iter(spec.submodule_search_locations or ()), "")


def _in_current_directory(top: str) -> ModuleSpec | None:
    """Finds a module of the user's there, unless it has the name of one of Python's or of a loaded one."""
    if top in sys.stdlib_module_names or top in sys.modules:
        return None
    return PathFinder.find_spec(top, [str(Path.cwd())])


def _import(module_name: str) -> ModuleType:
    top = module_name.partition(".")[0]
    spec = _in_current_directory(top)
    if spec is not None:
        if str(Path.cwd()) not in sys.path:  # stays, because modules may import others later
            sys.path.append(str(Path.cwd()))
        if spec.origin is not None and spec.loader is not None:  # not just a folder of that name
            module = sys.modules[top] = module_from_spec(spec)
            try:
                spec.loader.exec_module(module)
            except BaseException:
                sys.modules.pop(top, None)
                raise
    return importlib.import_module(module_name)

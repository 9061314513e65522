"""Loads a user's object by its import path, "module:name"."""

from __future__ import annotations

import difflib
import importlib
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from persia_hpc.errors import UserError


def load_object(path: str, what: str) -> object:
    """Returns the object that "module:name" names; the current directory is searched first.

    what: what the object is for ("model", "loss", ...), for messages.

    Raises UserError when the path has another form, the module can't be found or fails while it is imported,
    or it has no such name.
    """
    module_name, colon, name = path.partition(":")
    if not colon or not name or not all(part.isidentifier() for part in module_name.split(".")):
        hint = ""
        if colon and module_name.endswith(".py"):
            hint = f"; for a file write {'.'.join(Path(module_name).with_suffix('').parts)}:{name}"
        raise UserError(f'{what} {path!r}: expected "module:name", like "my_model:TwoTower"{hint}')
    with _current_directory_first():
        try:
            module = importlib.import_module(module_name)
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


@contextmanager
def _current_directory_first() -> Iterator[None]:
    directory = str(Path.cwd())
    sys.path.insert(0, directory)
    try:
        yield
    finally:
        sys.path.remove(directory)

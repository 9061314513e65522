"""Imports all modules, then runs each list of arguments: prints JSON of what failed to import, and of each
command its exit code and what it said on stderr.
"""

import contextlib
import importlib
import io
import json
import pkgutil
import sys

import persia_hpc
from persia_hpc.cli import main

failed = {}
for module in pkgutil.walk_packages(persia_hpc.__path__, "persia_hpc."):
    try:
        importlib.import_module(module.name)
    except ImportError as error:
        failed[module.name] = error.name
ended = []
for arguments in json.loads(sys.argv[1]):
    said, shown = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(shown):
        try:
            code = main(arguments)
        except SystemExit as end:
            code = end.code
    ended.append([code, said.getvalue()])
print(json.dumps([failed, ended]))

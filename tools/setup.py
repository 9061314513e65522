"""`make setup`: builds the environment that everything else runs in.

Stays readable for Python 3.6 (no newer syntax here), so that an old interpreter says what it lacks instead of
raising a syntax error.
"""

import os
import shutil
import subprocess
import sys

OLDEST = (3, 10)
NEWER = ["python3.%d" % minor for minor in (13, 12, 11, 10)]  # noqa: UP031
AGAIN = "PERSIA_HPC_SETUP_AGAIN"


def works(python):
    """Whether the interpreter runs and is new enough."""
    code = "import sys; sys.exit(sys.version_info < %r)" % (OLDEST,)  # noqa: UP031
    try:
        return subprocess.call([python, "-c", code], stderr=subprocess.DEVNULL) == 0
    except OSError:
        return False


def find_python():
    """Goes on with the interpreter to use, if it isn't this one.

    That is the one of the environment, where there is one: if `python3` means another Python today, nobody
    wants minutes of building for it. Only PYTHON=... (--chosen) changes the Python of an environment.
    """
    if os.environ.pop(AGAIN, ""):
        return
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    environment = os.path.join(root, ".venv-site" if "site" in sys.argv else ".venv", "bin", "python")
    chosen = "--chosen" in sys.argv
    candidates = [] if chosen else [environment]
    if sys.version_info >= OLDEST:
        candidates.append(sys.executable)
    elif not chosen:
        candidates += [shutil.which(name) for name in NEWER]
    for python in candidates:
        if python == sys.executable:
            return
        if python and works(python):
            sys.stdout.flush()
            os.environ[AGAIN] = "1"
            os.execv(python, [python, *sys.argv])
    print(
        "set-up step 'python' failed: %s is Python %d.%d, persia-hpc needs 3.10 or newer\n"  # noqa: UP031
        "fix: load a newer one (cluster: `module avail python`; without root: miniforge or pyenv), then run\n"
        "     `make setup PYTHON=/path/to/python3`"
        % (sys.executable, sys.version_info[0], sys.version_info[1])
    )
    sys.exit(1)


if __name__ == "__main__":
    find_python()
    import setup_steps

    setup_steps.main()

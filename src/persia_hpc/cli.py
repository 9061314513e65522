"""The command line: `persia-hpc COMMAND …`. A command's module is imported only when it is the one."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from .errors import EXIT_FAILURE, EXIT_USER, PersiaError, needs_package
from .launch.environment import inside_mpi, keep_to_loopback, let_threads_sleep, world_rank_of
from .printable import LINES, open_streams, printable, stop_printing
from .runtime.imports import import_quickly

COMMANDS = (
    *("train", "submit", "status", "evaluate", "predict", "importance", "export"),
    *("preprocess", "inspect", "init", "checkpoint", "report", "plan", "doctor", "demo", "bench"),
    *("completion", "man"),
)
WHOLE = ("completion", "man")  # commands that look at all of them
EXIT_CODES = """\
exit codes: 0 done; 1 failure; 2 bad input or configuration; 3 damaged data; 75 stopped early, try again;
128+n ended by signal n"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code; an error that a user can cause is one line on stderr."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    open_streams()
    warnings.filterwarnings("ignore", "Polars binary is missing")  # an error says it, in one line
    parser = _make_parser(given)
    try:
        options = parser.parse_args(given)
        keep_to_loopback()
        let_threads_sleep()
        code = options.command_module.run(options)
        sys.stdout.flush()
        return int(code)
    except PersiaError as error:
        if _speaks():
            print(f"persia-hpc: error: {printable(error, LINES)}", file=sys.stderr, flush=True)
        return error.exit_code
    except ModuleNotFoundError as error:
        if error.name != "polars":  # what reads and writes tables; no rank of a job has use for it
            raise
        refusal = needs_package("this command", error.name)
        if _speaks():
            print(f"persia-hpc: error: {refusal}", file=sys.stderr, flush=True)
        return refusal.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `persia-hpc report … | head`
        stop_printing(sys.stdout)
        return EXIT_FAILURE
    except OSError as error:  # a disk, a right, a name: nothing that a traceback explains
        text = f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
        print(f"persia-hpc: error: {printable(text)}", file=sys.stderr, flush=True)
        return EXIT_FAILURE
    except MemoryError as error:
        print(f"persia-hpc: error: out of memory: {printable(error)}", file=sys.stderr, flush=True)
        return EXIT_FAILURE
    except Exception:
        if _tables_work():
            raise
        text = "this command needs the compiled part of the Python package polars, which isn't here"
        print(f"persia-hpc: error: {text}: pip install --force-reinstall polars", file=sys.stderr, flush=True)
        return EXIT_USER


def _tables_work() -> bool:
    """Says whether polars, if it was imported, has its compiled part, without which it imports as well."""
    polars = sys.modules.get("polars")
    try:
        return polars is None or len(polars.Series([0])) == 1
    except Exception:
        return False


def _make_parser(given: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="persia-hpc",
        description="Trains recommendation models with embedding tables larger than any GPU, on MPI.",
        epilog=f"persia-hpc COMMAND --help shows examples.\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    asked: Sequence[str] = [argument for argument in given if argument != "--"][:1]
    if asked and asked[0] in WHOLE:
        asked = COMMANDS
        parser.set_defaults(whole_parser=parser)
    for name in asked if asked and asked[0] in COMMANDS else COMMANDS:
        import_quickly(f"persia_hpc.commands.{name}")
        module = sys.modules[f"persia_hpc.commands.{name}"]
        command = commands.add_parser(
            name,
            help=module.SUMMARY,
            description=module.DESCRIPTION,
            epilog=f"{module.EXAMPLES}\n\n{EXIT_CODES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name in asked:  # else only the list of commands is shown
            module.add_arguments(command)
        command.set_defaults(command_module=module)
    return parser


class _Version(argparse.Action):
    """Prints the version; looked up only when asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib import metadata

        try:
            version = metadata.version("persia-hpc")
        except metadata.PackageNotFoundError:
            version = "(runs from its source, not installed)"
        print(f"persia-hpc {version}")
        parser.exit()


def _speaks() -> bool:
    """Whether this process is the one of its job that reports an error all ranks have."""
    return not inside_mpi() or world_rank_of() in (None, 0)


if __name__ == "__main__":
    sys.exit(main())

"""persia-hpc demo: trains on the bundled data, by the commands that anybody would type for their own."""

from __future__ import annotations

import argparse
import shlex
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from persia_hpc.config import load_config, parse_set, toml_value
from persia_hpc.errors import UserError
from persia_hpc.launch.environment import inside_mpi
from persia_hpc.printable import printable

from . import preprocess, train
from .init import is_utf8

SUMMARY = "train on the bundled Adult data"
DESCRIPTION = """\
Prepares the bundled Adult data (Becker and Kohavi, UCI Machine Learning Repository, CC BY 4.0) below the
current directory, writes a configuration beside them, and trains: under mpiexec, with a server, a worker
and two trainers. It prints the two commands that it runs. A configuration that is there already is used.
Where Horovod isn't installed, it adds --set train.reducer=mpi, which needs none."""
EXAMPLES = """\
examples:
  persia-hpc demo
  persia-hpc demo --out /scratch/adult --run-dir /scratch/runs/demo
  persia-hpc demo --set train.epochs=1 --set mode=sync"""
OUT = Path("data/adult")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument(
        "--out",
        type=Path,
        default=OUT,
        metavar="DIR",
        help=f"where data and configuration go (default: {OUT})",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="as for `persia-hpc train`"
    )
    parser.add_argument("--run-dir", metavar="DIR", help="where results go (default: runs/<next number>)")
    parser.add_argument("--one-process", action="store_true", help="without MPI, as for `persia-hpc train`")


def run(options: argparse.Namespace) -> int:
    """Prepares the data, trains, and returns the training's exit code.

    Raises UserError for files in the way, and as the two commands do.
    """
    if inside_mpi():
        raise UserError(
            "demo: this is a rank of an MPI job; start it without mpiexec or srun, which it does itself"
        )
    out: Path = options.out
    if not is_utf8(str(out)):
        raise UserError(f"--out: got {out}, a name that isn't UTF-8, which TOML can't have; give another")
    if code := _call(preprocess, "preprocess", ["adult", "--out", str(out)]):
        return code
    config = out / "adult.toml"
    if not config.exists():
        try:
            config.write_text(configuration(out), encoding="utf-8")
        except OSError as error:
            raise UserError(f"--out: {config} can't be written ({error.strerror})") from error
    # Not written into the file, which stays when Horovod comes and goes.
    given = options.one_process or "train.reducer" in parse_set(options.set)
    lacking = not given and find_spec("horovod") is None and load_config(config).train.reducer == "horovod"
    changes = [*options.set, *["train.reducer=mpi"] * lacking]
    more = [word for change in changes for word in ("--set", change)]
    more += ["--run-dir", options.run_dir] if options.run_dir is not None else []
    return _call(train, "train", [str(config), *more, *["--one-process"] * options.one_process])


def configuration(out: Path) -> str:
    """Returns the bundled configuration for data in the directory `out`.

    Raises UserError if the bundled data aren't there.
    """
    from persia_hpc.preprocess.adult import find_input

    text = (find_input() / "adult.toml").read_text(encoding="utf-8")
    for split in ("train", "valid", "test"):
        text = text.replace(f'["data/adult/{split}.h5"]', toml_value([f"{out}/{split}.h5"]))
    return text


def _call(command: ModuleType, name: str, arguments: list[str]) -> int:
    print(printable(f"$ persia-hpc {name} {shlex.join(arguments)}"), flush=True)
    parser = argparse.ArgumentParser(prog=f"persia-hpc {name}")
    command.add_arguments(parser)
    return int(command.run(parser.parse_args(arguments)))

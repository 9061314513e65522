"""Kills a run that exports, and readers of it, at random moments: no answer may mix versions.

    python -m tests.support.serving_chaos [--kills N] [--seed S] [--servers P]

A run in `sync` is killed with SIGKILL N times and resumed each time; a reader, in another process, answers
meanwhile and is killed N times too. Each answer names its step, and has all rows of all tables and the dense
weights: they must be, bit for bit, those of that step in a run that was left alone. What is killed when
depends on the seed, as far as the machine's timing allows. Exit code 1 for any other answer.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

import persia_hpc as ph
from persia_hpc._native import mix
from tests.support.mpi import REPOSITORY, mpiexec
from tests.support.tiny import VOCABULARY, tiny_config, write_tiny

IDS = np.arange(VOCABULARY)
END_SECONDS = 300


def settings(folder: Path, name: str, steps: int, servers: int = 1) -> dict[str, Any]:
    return tiny_config(
        str(folder / "train.h5"),
        **{
            "run_dir": str(folder / name),
            "ranks": {"parameter_servers": servers, "embedding_workers": 1, "trainers": 1},
            "tables.item.capacity": "16 KiB",  # some rows go
            "train.epochs": 10_000,
            "train.max_steps": steps,
            "checkpoint.every": 40,
            "export": {"every_seconds": 0.02, "dir": str(folder / f"{name}-export"), "base_every": 4},
        },
    )


def digest(rows: dict[str, np.ndarray], dense: dict[str, Any]) -> str:
    found = hashlib.sha256()
    for name in sorted(rows):
        found.update(name.encode() + rows[name].tobytes())
    for name in sorted(dense):
        found.update(name.encode() + dense[name].numpy().tobytes())
    return found.hexdigest()


def expected_digests(folder: Path, steps: int) -> dict[int, str]:
    """Trains in this process, left alone; returns the digest of each step."""
    found: dict[int, str] = {}

    class Note(ph.Callback):
        def on_step(self, run: Any) -> None:
            server = run.session.stream.server
            keys = np.sort(mix(IDS.astype(np.uint64)))
            rows = {}
            for layout, table in zip(server.layout.tables, server.tables, strict=True):
                rows[layout.name] = np.empty((len(keys), layout.dim), np.float32)
                table.lookup(keys, rows[layout.name])
            found[run.step] = digest(rows, run.model.state_dict())

    config = settings(folder, "alone", steps)
    del config["export"]
    ph.train(config, callbacks=[Note()], quiet=True)
    return found


def read(directory: str) -> None:
    """Answers for ever: prints version, step and digest of each version that it gets to see."""
    import io

    import torch

    order = np.argsort(mix(IDS.astype(np.uint64)))
    seen = 0
    while True:
        try:
            with ph.Reader(directory, follow=False) as reader:
                while True:
                    with reader._follower.side() as side:
                        number, step = side.number, side.version["step"]
                        content = side.dense()
                    if number != seen:
                        rows = {table: reader.rows(table, IDS) for table in reader.tables}
                        assert {answer.version for answer in rows.values()} == {number}
                        values = {table: answer.values[order] for table, answer in rows.items()}
                        model = torch.load(io.BytesIO(content), weights_only=True)["model"]
                        print(json.dumps([number, step, digest(values, model)]), flush=True)
                        seen = number
                    reader.refresh()
                    time.sleep(0.002)
        except ph.UserError:  # there is no version yet
            time.sleep(0.01)


class Chaos:
    """Is a run that is killed and resumed, and readers that are killed and started again."""

    def __init__(self, folder: Path, *, kills: int, seed: int, steps: int, servers: int = 1) -> None:
        self.folder, self.kills, self.steps, self.servers = folder, kills, steps, servers
        self.random = random.Random(seed)
        self.answers: set[tuple[int, int, str]] = set()
        self.readers = 0
        self.done = threading.Event()
        write_tiny(folder / "train.h5", 640)
        self.expected = expected_digests(folder, steps)
        self.config = folder / "config.json"
        settings_ = settings(folder, "killed", steps, servers)
        settings_["checkpoint"]["resume"] = True
        self.config.write_text(json.dumps(settings_))

    def _start(self, *arguments: str, ranks: int = 1) -> subprocess.Popen[str]:
        code = [sys.executable, *(["-m", "mpi4py"] if ranks > 1 else [])]
        launcher = [mpiexec(), "-n", str(ranks)] if ranks > 1 else []
        command = [*launcher, *code, "-m" if ranks == 1 else __file__, *arguments]
        if ranks == 1:
            command.insert(2, "tests.support.serving_chaos")
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            command,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if arguments[0] != "read" else subprocess.DEVNULL,
            start_new_session=True,
        )

    def _read(self) -> None:
        """Lets readers answer, each until it is killed; the last one until it has the end of the run."""
        last = False
        while not (last and self.done.is_set()):
            last = self.readers >= self.kills or self.done.is_set()
            process = self._start("read", str(self.folder / "killed-export"))
            self.readers += 1
            at_end = threading.Event()
            lifetime = None if last else self.random.uniform(0.3, 2.0)
            killer = None if lifetime is None else threading.Timer(lifetime, process.kill)
            if killer is not None:
                killer.start()
            else:
                threading.Thread(target=self._end_reader, args=(process, at_end)).start()
            assert process.stdout is not None
            for line in process.stdout:
                if line.endswith("\n"):
                    number, step, found = json.loads(line)
                    self.answers.add((number, step, found))
                    (at_end.set if step == self.steps else at_end.clear)()
            process.wait()
            if killer is not None:
                killer.cancel()

    def _end_reader(self, process: subprocess.Popen[str], at_end: threading.Event) -> None:
        self.done.wait()
        at_end.wait(60)  # where the machine is busy, it may still have to import its modules
        time.sleep(1)
        process.kill()

    def run(self) -> dict[str, int]:
        """Plays it; returns counts. Raises AssertionError for an answer that is of no version."""
        reading = threading.Thread(target=self._read)
        reading.start()
        ranks = 1 if self.servers == 1 else self.servers + 2
        try:
            for kill in range(self.kills + 1):
                process = self._start("train", str(self.config), ranks=ranks)
                try:
                    lifetime = END_SECONDS if kill == self.kills else self.random.uniform(0.2, 4.0)
                    process.wait(lifetime)
                    if process.returncode:
                        raise AssertionError(f"the run failed: {process.communicate()[1]}")
                    break
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.communicate()
                    assert kill < self.kills, "the run doesn't end"
        finally:
            self.done.set()
            reading.join()
        wrong = [a for a in self.answers if a[1] and self.expected[a[1]] != a[2]]
        assert not wrong, f"answers that are of no version: {sorted(wrong)[:5]}"
        newest = max(self.answers, default=(0, 0, ""))
        assert newest[1] == self.steps, f"the last answer is of step {newest[1]}"
        assert not list((self.folder / "killed-export").glob("*.partial"))
        return {"killed_runs": kill, "readers": self.readers, "versions": len(self.answers)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--servers", type=int, default=1)
    parser.add_argument("--steps", type=int, default=4000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        begin = time.monotonic()
        chaos = Chaos(
            Path(folder),
            kills=arguments.kills,
            seed=arguments.seed,
            steps=arguments.steps,
            servers=arguments.servers,
        )
        counts = chaos.run()
    print(json.dumps({**counts, "seconds": round(time.monotonic() - begin)}))
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["read"]:
        read(sys.argv[2])
    elif sys.argv[1:2] == ["train"]:
        ph.train(json.loads(Path(sys.argv[2]).read_text()), quiet=True)
    else:
        sys.exit(main())

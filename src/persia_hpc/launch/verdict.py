"""Judges how a job has ended: its exit code and the last words about it."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from persia_hpc.errors import EXIT_AGAIN, EXIT_DATA, EXIT_FAILURE, EXIT_OK, EXIT_USER
from persia_hpc.printable import LINES, printable

from .deaths import Death
from .registry import RankRecord, read_failure, read_summary
from .relay import Relay
from .shared_memory import room_hint

# Other lines of theirs are rules and advice: "Please see the FAQ page for debugging suggestions".
_COMPLAINT = re.compile(r"^(?:srun: error:|slurmstepd: error:|\[(?:mpiexec@|proxy:)).*", re.MULTILINE)
LOOK_SECONDS = 0.5  # between two looks at the launcher, at most


@dataclass(frozen=True)
class Ending:
    """Holds what the supervisor has seen of a job, all processes of which have ended."""

    run_dir: Path
    launcher: str  # path of its program
    launcher_code: int
    launcher_death: float | None  # time.time() when it was killed by a signal, other than by us
    launcher_pid: int
    ranks: Mapping[int, RankRecord]  # by world rank
    first_death: Death | None  # of a rank that hadn't come to its end
    signals: Sequence[int]  # that the supervisor got
    asked: bool  # the ranks were asked to stop
    in_vain: bool  # they didn't in time
    grace_seconds: float  # which they had
    out: Relay
    err: Relay


def verdict(ending: Ending) -> tuple[int, str]:
    """Returns the exit code and the last message ("" if all is well)."""
    summary = read_summary(ending.run_dir) or {}
    status, steps = str(summary.get("status")), summary.get("steps")
    failure = read_failure(ending.run_dir)
    if status in ("completed", "stopped"):
        if ending.launcher_code == 0:
            return EXIT_OK, ""
        finished = [rank.finished for rank in ending.ranks.values()]
        if failure is None and finished and all(finished):  # what died afterwards had nothing to do any more
            return EXIT_OK, f"the run is {status}; {_launchers_end(ending)} after that"
    if status == "interrupted":
        reason = _name(ending.signals[0]) if ending.signals else summary.get("stop_reason")
        return EXIT_AGAIN, (
            f"stopped by {reason} after step {steps}; go on with: "
            f"persia-hpc train --resume --run-dir {ending.run_dir}"
        )
    if ending.signals and not (ending.asked and failure):
        number = ending.signals[0]
        return 128 + number, f"ended by {_name(number)}{_why_not_saved(ending)}"
    death = ending.first_death
    if ending.launcher_death is not None and (
        failure is None or failure["time"] > ending.launcher_death - LOOK_SECONDS
    ):
        return 128 - ending.launcher_code, f"{_launchers_end(ending)}; the job was ended"
    if failure is not None and not (
        death and death.rank.world_rank != failure["world_rank"] and death.time < failure["time"]
    ):
        if failure["code"] == 2:
            return 2, f"error: {failure['message']}"
        rank = ending.ranks.get(failure["world_rank"]) or f"rank {failure['world_rank']}"
        sys.stderr.write(printable(failure.get("details", ""), LINES))
        return int(failure["code"]), f"{rank} failed: {failure['message']}; the job was ended"
    aborted = ending.err.aborted(ending.launcher_code) or ending.out.aborted(ending.launcher_code)
    if ending.err.errors:  # of a rank that couldn't write it down: the disk may be what has failed
        text = ending.err.errors[-1].decode(errors="replace").removeprefix("persia-hpc: ")
        code = ending.launcher_code if ending.launcher_code in (EXIT_USER, EXIT_DATA) else EXIT_FAILURE
        return code, f"{text}; the job was ended"
    if aborted is not None:
        rank = ending.ranks.get(aborted) or f"rank {aborted}"
        return EXIT_FAILURE, f"{rank} aborted the job with code {ending.launcher_code}"
    lost = _lost_proxy(ending) and (death is None or death.signal is None)
    if death is not None and not lost:
        return _death_verdict(ending, death)
    log = ending.run_dir / "logs" / "launcher.log"
    if ending.launcher_code:
        remote = "" if all(r.is_local for r in ending.ranks.values()) else "; a node may have died"
        return EXIT_FAILURE, f"{_launchers_end(ending)}{remote}{_own_words(ending)}; see {log}"
    name = Path(ending.launcher).name
    return (
        EXIT_FAILURE,
        f"{name} reports success, but the run wrote no summary ({ending.run_dir}); see {log}",
    )


def _lost_proxy(ending: Ending) -> bool:
    return ending.err.lost_proxy() or ending.out.lost_proxy()


def _launchers_end(ending: Ending) -> str:
    name, code = Path(ending.launcher).name, ending.launcher_code
    if code >= 0:
        lost = "lost its proxy on a node and " if _lost_proxy(ending) else ""
        return f"{name} {lost}ended with exit code {code}"
    return f"{name} (pid {ending.launcher_pid}) was killed by signal {-code} ({_name(-code)})"


def _own_words(ending: Ending) -> str:
    """Returns the launcher's last complaint, if no rank has come to life: it says more than the exit code."""
    complaints = _COMPLAINT.findall(ending.err.launcher_text.decode(errors="replace"))
    return f": {complaints[-1].strip()}" if complaints and not ending.ranks else ""


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "real-time"


def _node_hint(rank: RankRecord) -> str:
    """Returns how to keep away from a node under Slurm, where memory, a GPU or a disk may be at fault."""
    if "SLURM_JOB_ID" not in os.environ:
        return ""
    return f"; if node {rank.host} does it again: persia-hpc submit ... --extra=--exclude={rank.host}"


def _why_not_saved(ending: Ending) -> str:
    if not ending.in_vain:
        return ""
    return (
        f"; not saved within checkpoint.grace_seconds ({ending.grace_seconds:g} s): --resume goes on from "
        "the checkpoint before, if there is one"
    )


def _death_verdict(ending: Ending, death: Death) -> tuple[int, str]:
    rank = ending.ranks.get(death.rank.world_rank, death.rank)
    number = death.signal
    if number is None and death.exit_code is None:
        ids = (rank.world_rank, rank.pid)
        number = ending.err.exit_signal(*ids) or ending.out.exit_signal(*ids)
    if number is not None:
        where = room_hint(number) if rank.role is None and rank.is_local else ""
        text = f"{rank} was killed by signal {number} ({_name(number)}){where}"
        return 128 + number, f"{text}; the job was ended{_node_hint(rank)}"
    if death.exit_code is not None:
        return EXIT_FAILURE, f"{rank} ended early with exit code {death.exit_code}; the job was ended"
    return EXIT_FAILURE, f"{rank} died; the job was ended"

"""Trains as told, and prints the ports on which this job's ranks listen for other hosts.

python listening.py CONFIG; the launcher's own ports, which ranks inherit, are left out.
"""

import json
import os
import sys
from pathlib import Path

import persia_hpc as ph

LISTENS = "0A"  # in /proc/net/tcp
LOOPBACK = ("0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F")


def sockets(pid: int) -> set[str]:
    """The inodes of a process's sockets."""
    links = (os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir() if fd.is_symlink())
    return {link[len("socket:[") : -1] for link in links if link.startswith("socket:[")}


class Look(ph.Callback):
    def on_step(self, run):
        if run.step > 1:
            return
        launcher = os.getppid()
        tasks = Path(f"/proc/{launcher}/task").glob("*/children")
        ranks = [int(pid) for task in tasks for pid in task.read_text().split()]
        own = set.union(*map(sockets, ranks)) - sockets(launcher)
        found = []
        for table in ("tcp", "tcp6", "udp", "udp6"):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                listens = fields[3] == LISTENS or table.startswith("udp")
                if listens and fields[9] in own and not fields[1].startswith(LOOPBACK):
                    found.append(f"{table} {fields[1]}")
        print("LISTENING" + json.dumps({"ranks": len(ranks), "found": found}), flush=True)


ph.train(json.loads(sys.argv[1]), callbacks=[Look()], quiet=True)

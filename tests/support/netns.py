"""Virtual nodes on one machine, so that MPI between them must use the network.

Each has network, host name, /etc/hosts, IPC, processes, /dev/shm (64 MiB, as in containers) and /tmp of its
own; the rest of the file system is shared. Needs root and the programs ip (iproute2), nsenter and unshare
(util-linux); else the test is skipped.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.mpi import REPOSITORY, environment, mpiexec

START_SECONDS = 10

# The first process of a node: $1 name, $2 hosts file, $3 its /tmp, $4 file that says it is ready, then the
# folders below /tmp that it shares with the machine.
BOOT = r"""
set -e
hostname "$1"; hosts=$2; tmp=$3; ready=$4; shift 4
mount --bind "$hosts" /etc/hosts
for folder in "$@"; do
    mkdir -p "$tmp/${folder#/tmp/}"
    mount --bind "$folder" "$tmp/${folder#/tmp/}"
done
mount --rbind "$tmp" /tmp
mount -t tmpfs -o size=64m tmpfs /dev/shm
ip link set lo up
: >"$ready"
while :; do sleep 1000 & wait $!; done
"""

# What the launcher takes for ssh: options, an address, a command line.
REMOTE_SHELL = r"""#!/bin/sh
while [ "${1#-}" != "$1" ]; do
    case $1 in -l | -p | -o) shift ;; esac
    shift
done
pid=$(cat "STATE/$1.pid") || exit 255
shift
exec nsenter -t "$pid" -n -u -i -m -p --wd="$PWD" -- sh -c "$*"
"""


class Part(NamedTuple):
    """`ppn` ranks of a Python program on each of these nodes."""

    nodes: Sequence[int]
    ppn: int
    program: Sequence[str]
    env: Mapping[str, str] = {}


class Nodes:
    """Running virtual nodes."""

    def __init__(
        self, state: Path, bridge: str, network: str, addresses: list[str], links: list[str]
    ) -> None:
        self._state = state
        self._links = links
        self._bridge = bridge
        self._network = network
        self.addresses = addresses

    def run(self, node: int, *command: str, timeout: float = 30) -> subprocess.CompletedProcess[str]:
        """Runs a command on one node; asserts exit code 0."""
        pid = (self._state / f"{self.addresses[node]}.pid").read_text()
        inside = ["nsenter", "-t", pid, "-n", "-u", "-i", "-m", "-p", "--", *command]
        return _run(inside, timeout=timeout)

    def link(self, node: int, state: str) -> None:
        """Cuts a node off ("down"), or heals the cut ("up") and waits until all others reach it again."""
        _run(["ip", "link", "set", self._links[node], state])
        if state == "down":
            return
        probe = (
            "import socket, sys; s = socket.socket(); s.settimeout(1); print(s.connect_ex((sys.argv[1], 9)))"
        )
        limit = time.monotonic() + 30
        for other in set(range(len(self.addresses))) - {node}:
            for here, there in ((other, node), (node, other)):
                command = (sys.executable, "-c", probe, self.addresses[there])
                while int(self.run(here, *command).stdout) != errno.ECONNREFUSED:
                    assert time.monotonic() < limit, f"node {there} can't be reached from node {here}"
                    time.sleep(0.2)

    def processes(self, node: int, text: str) -> list[int]:
        """Pids, in the node's own count, of its processes whose command line has `text`."""
        lines = self.run(node, "ps", "-e", "-o", "pid=,args=").stdout.splitlines()
        return [int(line.split()[0]) for line in lines if text in line]

    def kill(self, node: int) -> None:
        """Kills all its processes at once; the node is gone for good."""
        os.kill(int((self._state / f"{self.addresses[node]}.pid").read_text()), signal.SIGKILL)

    def limit(self, node: int, mbit: float, hub: int) -> None:
        """Limits what the node sends and what it receives to `mbit` Mbit/s each.

        Traffic with the node `hub` and with all others share that fairly: none waits in the other's queue.
        """

        def outside(*command: str) -> None:
            _run(list(command))

        for run, device, end in (
            (partial(self.run, node), "eth0", "dst"),
            (outside, self._links[node], "src"),
        ):
            tc = partial(run, "tc")
            rate = ("rate", f"{mbit / 2}mbit", "ceil", f"{mbit}mbit", "quantum", "3000")
            match = ("match", "ip", end, f"{self.addresses[hub]}/32")
            on = ("dev", device, "parent")
            tc("qdisc", "replace", "dev", device, "root", "handle", "1:", "htb", "default", "20")
            tc("class", "add", *on, "1:", "classid", "1:1", "htb", "rate", f"{mbit}mbit", "quantum", "3000")
            for leaf in ("1:10", "1:20"):
                tc("class", "add", *on, "1:1", "classid", leaf, "htb", *rate)
            tc("filter", "add", *on, "1:", "protocol", "ip", "u32", *match, "flowid", "1:10")

    def launching(self, ppn: int | Sequence[int]) -> dict[str, str]:
        """Environment in which MPICH's launcher starts `ppn` ranks on each node, or so many on one each;
        skips for other MPIs.
        """
        version = subprocess.run([mpiexec(), "--version"], text=True, capture_output=True).stdout
        if "HYDRA" not in version:
            pytest.skip("other launchers than MPICH's aren't told of nodes by their environment")
        counts = [ppn] * len(self.addresses) if isinstance(ppn, int) else ppn
        hosts = self._state / f"hosts-{'-'.join(map(str, counts))}"
        hosts.write_text("".join(f"{a}:{n}\n" for a, n in zip(self.addresses, counts, strict=True)))
        return {
            "HYDRA_LAUNCHER": "ssh",
            "HYDRA_LAUNCHER_EXEC": str(self._state / "remote_shell"),
            "HYDRA_IFACE": self._bridge,
            "HYDRA_HOST_FILE": str(hosts),
        }

    def command(self, *parts: Part) -> list[str]:
        """Starts all parts as one job, by MPICH's launcher or Open MPI's."""
        shell = str(self._state / "remote_shell")
        version = subprocess.run([mpiexec(), "--version"], text=True, capture_output=True).stdout
        hydra = "HYDRA" in version
        hosts = [",".join(f"{self.addresses[n]}:{part.ppn}" for n in part.nodes) for part in parts]
        command = [mpiexec()]
        if hydra:
            command += ["-launcher", "ssh", "-launcher-exec", shell, "-iface", self._bridge]
            command += ["-hosts", ",".join(hosts)]
        else:
            command += ["--prtemca", "plm", "ssh", "--prtemca", "plm_ssh_agent", shell]
            command += ["--prtemca", "prte_if_include", self._network, "--bind-to", "none"]
            command += ["--mca", "btl_tcp_if_include", self._network]
            command += ["--mca", "pml", "ob1", "--mca", "osc", "^ucx"]
        for i, part in enumerate(parts):
            options = [] if hydra else ["--host", hosts[i]]
            for name, value in part.env.items():
                options += ["-env", name, value] if hydra else ["-x", f"{name}={value}"]
            number = str(part.ppn * len(part.nodes))
            command += [*([":"] if i else []), *options, "-n", number, sys.executable, *part.program]
        return command

    def mpiexec(
        self,
        ppn: int,
        program: Path | str,
        *arguments: str,
        timeout: float = 120,
        check: bool = True,
        **env: str,
    ) -> subprocess.CompletedProcess[str]:
        """`ppn` ranks of a Python program on each node; asserts exit code 0 unless check is False."""
        everywhere = range(len(self.addresses))
        command = self.command(Part(everywhere, ppn, ("-m", "mpi4py", str(program), *arguments)))
        done = subprocess.run(
            command,
            env=environment(UCX_NET_DEVICES="eth0", **env),
            text=True,
            capture_output=True,
            timeout=timeout,
        )
        if check:
            assert done.returncode == 0, (
                f"exit {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
            )
        return done


@contextmanager
def virtual_nodes(count: int = 2, shared: Sequence[Path] = ()) -> Iterator[Nodes]:
    """`count` nodes for the time of the context; `shared`: folders below /tmp that all nodes see."""
    missing = [program for program in ("ip", "nsenter", "unshare") if shutil.which(program) is None]
    if os.geteuid() != 0 or missing:
        pytest.skip(f"virtual nodes need root and ip, nsenter, unshare (missing: {missing or 'root'})")
    with ExitStack() as stack:
        state = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nodes-")))
        # Two runs at a time must not meet: bridge and network carry the process number.
        number = os.getpid()
        bridge, prefix = f"br{number}", f"10.{64 + number // 256 % 64}.{number % 256}"
        try:
            _run(["ip", "link", "add", bridge, "type", "bridge"])
        except AssertionError as error:
            pytest.skip(f"virtual nodes need network namespaces and bridges: {error}")
        stack.callback(_run, ["ip", "link", "del", bridge])
        _run(["ip", "addr", "add", f"{prefix}.254/24", "dev", bridge])
        _run(["ip", "link", "set", bridge, "up"])
        addresses = [f"{prefix}.{i}" for i in range(1, count + 1)]
        hosts = ["127.0.0.1 localhost", f"{prefix}.254 {socket.gethostname()}"]
        hosts += [f"{address} node{i}" for i, address in enumerate(addresses)]
        (state / "hosts").write_text("\n".join(hosts) + "\n")
        shell = state / "remote_shell"
        shell.write_text(REMOTE_SHELL.replace("STATE", str(state)))
        shell.chmod(0o755)
        visible = _below_tmp([*shared, REPOSITORY, Path(sys.prefix), Path.cwd(), state])
        links = [
            _start_node(stack, state, i, address, bridge, visible) for i, address in enumerate(addresses)
        ]
        yield Nodes(state, bridge, f"{prefix}.0/24", addresses, links)


def _start_node(
    stack: ExitStack, state: Path, index: int, address: str, bridge: str, visible: list[str]
) -> str:
    """Returns the machine's end of its link."""
    tmp, ready = state / f"tmp{index}", state / f"ready{index}"
    tmp.mkdir()
    namespaces = ["--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
    boot = ["bash", "-c", BOOT, "boot", f"node{index}", str(state / "hosts"), str(tmp), str(ready), *visible]
    parent = subprocess.Popen(
        ["unshare", *namespaces, *boot], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    stack.callback(parent.wait)
    stack.callback(parent.kill)  # the node's first process dies with it, and so does all the rest of the node
    deadline = time.monotonic() + START_SECONDS
    while not ready.exists():
        if parent.poll() is not None or time.monotonic() > deadline:
            parent.kill()
            reason = parent.stderr.read().decode(errors="replace") if parent.stderr else ""
            pytest.skip(f"virtual nodes need namespaces and mounts: {reason.strip()[-300:]}")
        time.sleep(0.01)
    pid = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()[0]
    (state / f"{address}.pid").write_text(pid)
    veth = f"v{os.getpid()}n{index}"
    _run(["ip", "link", "add", veth, "type", "veth", "peer", "name", "eth0", "netns", pid])
    # A namespace goes some time after its last process; the next test in this process needs the name.
    stack.callback(subprocess.run, ["ip", "link", "del", veth], capture_output=True, check=False)
    _run(["ip", "link", "set", veth, "master", bridge, "up"])
    inside = ["nsenter", "-t", pid, "-n", "ip"]
    _run([*inside, "addr", "add", f"{address}/24", "dev", "eth0"])
    _run([*inside, "link", "set", "eth0", "up"])
    return veth


def _below_tmp(folders: Sequence[Path]) -> list[str]:
    resolved = {str(folder.resolve()) for folder in folders}
    return sorted(folder for folder in resolved if folder.startswith("/tmp/"))


def _run(command: list[str], timeout: float = 30) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, text=True, capture_output=True, timeout=timeout)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}"
    return done

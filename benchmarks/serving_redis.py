"""Measures MGET of a redis-server: `serving_redis.py ROWS BYTES`, where redis and hiredis are installed."""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import hiredis
import redis

AT_ONCE = 512 * 26


def main() -> None:
    rows, size = int(sys.argv[1]), int(sys.argv[2])
    with tempfile.TemporaryDirectory() as folder:
        socket = str(Path(folder) / "socket")
        options = ["--unixsocket", socket, "--port", "0", "--save", "", "--appendonly", "no", "--dir", folder]
        server = subprocess.Popen(["redis-server", *options], stdout=subprocess.DEVNULL)
        try:
            while not Path(socket).exists():
                time.sleep(0.05)
            client = redis.Redis(unix_socket_path=socket)
            value = bytes(size)
            for begin in range(0, rows, 100_000):
                client.mset({key.to_bytes(8, "little"): value for key in range(begin, begin + 100_000)})
            draw = random.Random(0)
            asked = [[draw.randrange(rows).to_bytes(8, "little") for _ in range(AT_ONCE)] for _ in range(30)]
            times = []
            for keys in asked:
                begin_time = time.perf_counter()
                found = client.mget(keys)
                times.append(time.perf_counter() - begin_time)
                assert None not in found
            version = client.info()["redis_version"]
        finally:
            server.terminate()
            server.wait()
    versions = f"redis-server {version}, redis-py {redis.__version__}, hiredis {hiredis.__version__}"
    print(json.dumps({"seconds": statistics.median(times), "versions": versions}))


if __name__ == "__main__":
    main()

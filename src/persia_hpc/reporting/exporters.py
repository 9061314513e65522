"""Shows a run's numbers in TensorBoard and to Prometheus, as loggers; see `MetricLogger`."""

from __future__ import annotations

import re
import socket
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from persia_hpc.config import MetricsConfig
from persia_hpc.errors import UserError
from persia_hpc.printable import say

from .events import MetricLogger
from .scalars import scalars

LOOPBACK = "127.0.0.1"


class _Exporter(ABC):
    """Says so once when what it writes can't be written, and leaves the run alone."""

    what: str

    def __init__(self) -> None:
        self._failed = False

    def log(self, event: dict[str, Any]) -> None:
        """Takes an event. See `MetricLogger`."""
        if self._failed:
            return
        try:
            self._take(event)
        except OSError as error:
            self._failed = True
            text = f"nothing more is shown in {self.what}: {error}"
            say(text)

    @abstractmethod
    def _take(self, event: dict[str, Any]) -> None:
        """Shows the event's numbers; raises OSError if they can't be written."""


class TensorBoard(_Exporter):
    """Writes the numbers of all events to files that TensorBoard reads: `tensorboard --logdir RUN`."""

    what = "TensorBoard"

    def __init__(self, folder: Path):
        """Writes nothing yet.

        Raises UserError without the package.
        """
        super().__init__()
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError(
                "metrics.tensorboard needs the package tensorboard: pip install 'persia-hpc[tensorboard]'"
            ) from None
        self._make, self._folder = SummaryWriter, folder
        self._writer: Any = None

    def _take(self, event: dict[str, Any]) -> None:
        found = list(scalars(event))
        if self._writer is None and (found or event["event"] == "resume"):  # a warning may come before it
            # What was written after the checkpoint from which a run goes on is no part of it any more.
            purge = event["step"] + 1 if event["event"] == "resume" else None
            self._writer = self._make(str(self._folder), purge_step=purge, flush_secs=10)
        for scalar in found:
            tag = f"{scalar.group}/{scalar.name}"
            self._writer.add_scalar(tag, scalar.value, event["step"], walltime=event.get("time"))
        if event["event"] == "end" and self._writer is not None:
            self._writer.close()


class Prometheus(_Exporter):
    """Keeps the last value of each number where Prometheus finds it: in a file, or over HTTP on loopback."""

    what = "Prometheus"

    def __init__(self, file: Path, port: int | None, run: str):
        """Answers HTTP from the first event on.

        file: for node_exporter's textfile collector. run: says in every label of whose run a number is.
        Raises UserError without the package, and for a port that is taken.
        """
        super().__init__()
        try:
            import prometheus_client as client
            from prometheus_client.core import GaugeMetricFamily
        except ImportError:
            raise UserError(
                "metrics.prometheus needs the package prometheus_client: pip install 'persia-hpc[prometheus]'"
            ) from None
        if port is not None:
            _check_port(port)
        self._client, self._family = client, GaugeMetricFamily
        self._file, self._port, self._run = file, port, run
        self._values: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
        self._registry = client.CollectorRegistry()
        self._registry.register(self)
        self._server: Any = None

    def collect(self) -> Iterator[Any]:
        """Yields what the registry shows, whenever it is asked."""
        for name, values in list(self._values.items()):
            labels = sorted({label for key in list(values) for label, _ in key})
            family = self._family(name, f"{name} (docs/monitoring.md)", labels=labels)
            for key, value in list(values.items()):
                family.add_metric([dict(key).get(label, "") for label in labels], value)
            yield family

    def _take(self, event: dict[str, Any]) -> None:
        if self._port is not None and self._server is None:
            self._server, _ = self._client.start_http_server(
                self._port, addr=LOOPBACK, registry=self._registry
            )
        for scalar in scalars(event):
            name = "persia_hpc_" + re.sub(r"[^a-zA-Z0-9_]", "_", scalar.name)
            labels = scalar.labels or {"split": scalar.group}
            key = tuple(sorted({"run": self._run, **labels}.items()))
            self._values.setdefault(name, {})[key] = scalar.value
        if event["event"] in ("train", "evaluate", "end"):
            self._client.write_to_textfile(str(self._file), self._registry)
        if event["event"] == "end" and self._server is not None:
            self._server.shutdown()
            self._server.server_close()


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            raise UserError(
                f"metrics.prometheus_port = {port}: can't listen on {LOOPBACK} ({error.strerror}); "
                "choose another port"
            ) from None


def make_exporters(config: MetricsConfig, run_dir: Path) -> list[MetricLogger]:
    """Returns the loggers that the configuration asks for.

    Raises UserError for a package that is missing, and for a port that is taken.
    """
    made: list[MetricLogger] = []
    if config.tensorboard:
        made.append(TensorBoard(run_dir / "tensorboard"))
    if config.prometheus:
        file = Path(config.prometheus_file or run_dir / "metrics.prom")
        made.append(Prometheus(file, config.prometheus_port, run_dir.resolve().name))
    return made

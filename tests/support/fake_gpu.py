"""A GPU that isn't there: code for one runs on the host, and what it asks of CUDA is checked and counted.

Tensors of the device `cuda` are the host's, which are known by their memory. A copy that doesn't block, on
another stream than the one that computes, happens as late as it may: when something waits for it. Until then
its target holds garbage. So a missing wait, and memory that is given back too early, give wrong values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from persia_hpc import _native
from persia_hpc.trainer.pooling import embed
from persia_hpc.trainer.pooling.gradients import RowGradients

GARBAGE = 0xA5
SMALL = 1 << 16  # bytes that the driver takes from any memory before the call returns
TO_HOST = ("item", "tolist", "cpu", "__float__", "__int__", "__bool__", "__index__", "nonzero")


class Stream:
    """What was asked for on a stream, in order; the first `done` have happened."""

    cuda_stream = 0

    def __init__(self, _: object = None) -> None:
        self.tasks: list[Callable[[], None]] = []
        self.done = 0

    def run(self, end: int) -> None:
        while self.done < end:
            self.tasks[self.done]()
            self.done += 1

    def wait_event(self, event: Event) -> None:
        event.stream.run(event.end)

    def wait_stream(self, other: Stream) -> None:
        other.run(len(other.tasks))


class Event:
    """An event; `gpu` is the FakeGpu that is in use."""

    gpu: FakeGpu

    def record(self) -> None:
        self.stream, self.end = self.gpu.current, len(self.gpu.current.tasks)

    def synchronize(self) -> None:
        self.gpu.waits.append("event, pending" if self.stream.done < self.end else "event")
        self.stream.run(self.end)


class FakeGpu(TorchFunctionMode):
    """Notes in `waits` what the host waits for, in `faults` what a GPU would do wrongly or slowly."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.faults: list[str] = []
        self.compute = self.current = Stream()
        self.locked: list[tuple[int, int]] = []  # (address, bytes) of page-locked memory
        self._memory: dict[int, Any] = {}  # of the device, by address; never freed
        self._pinned: list[Tensor] = []

    def device_of(self, tensor: Tensor) -> torch.device:
        on_gpu = tensor.untyped_storage().data_ptr() in self._memory
        return torch.device("cuda", 0) if on_gpu else torch.device("cpu")

    def _take(self, result: Any) -> Any:
        """Says of a result that it is on the GPU."""
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor) and tensor.numel():
                storage = tensor.untyped_storage()
                self._memory[storage.data_ptr()] = storage
        return result

    def _has(self, values: Any) -> bool:
        if isinstance(values, (tuple, list)):
            return any(self._has(v) for v in values)
        return isinstance(values, Tensor) and self.device_of(values).type == "cuda"

    def _check(self, host: Tensor) -> None:
        begin, size = host.data_ptr(), host.numel() * host.element_size()
        if not any(first <= begin and begin + size <= first + length for first, length in self.locked):
            self.faults.append(f"{size} bytes of memory that isn't page-locked are copied without blocking")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name, owner = func.__name__, getattr(func, "__self__", None)
        if name == "__get__" and owner is torch.Tensor.device:
            return self.device_of(args[0])
        if name == "copy_" and self._has(args[0]) != self._has(args[1]):
            return self._copy(args[0], args[1], bool(kwargs.get("non_blocking")))
        if name == "to":
            return self._to(func, args, kwargs)
        on_gpu = self._has(args) or self._has(list(kwargs.values()))
        if on_gpu and name in TO_HOST:
            self.waits.append(name)
        if torch.device(kwargs.get("device") or "cpu").type == "cuda":
            kwargs["device"], on_gpu = "cpu", True
        pinned = kwargs.pop("pin_memory", False)
        result = func(*args, **kwargs)
        if name == "empty" and result.dtype == torch.uint8:
            result.fill_(GARBAGE)
        if pinned:
            self.locked.append((result.data_ptr(), result.numel() * result.element_size()))
            self._pinned.append(result)
        return self._take(result) if on_gpu and name not in TO_HOST else result

    def _copy(self, target: Tensor, source: Tensor, without_blocking: bool) -> Tensor:
        if not without_blocking:
            self.waits.append("copy_")
            torch.Tensor.copy_(target, source)
            return target
        self._check(source if self._has(target) else target)
        with torch.no_grad():
            if self.current is self.compute:
                target[...] = source
            else:
                self.current.tasks.append(lambda: target.data.__setitem__(..., source))
        return target

    def _to(self, func: Any, args: Any, kwargs: Any) -> Any:
        values = [*args[1:], *kwargs.values()]
        devices = [torch.device(v) for v in values if isinstance(v, (str, torch.device))]
        was, device = self._has(args[0]), devices[0] if devices else None
        host = [torch.device("cpu") if isinstance(v, (str, torch.device)) else v for v in args[1:]]
        options = {k: torch.device("cpu") if k == "device" else v for k, v in kwargs.items()}
        result = func(args[0], *host, **options)
        if device is None:
            return self._take(result) if was else result
        if was and device.type == "cpu":
            self.waits.append("to the host")
        if device.type == "cpu" or was:
            return self._take(result) if device.type == "cuda" else result
        if result.numel() * result.element_size() > SMALL:
            self._check(args[0])
        return self._take(result.clone() if result is args[0] else result)

    # What torch.cuda has.

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def register(self, address: int, size: int, _: int) -> int:
        self.locked.append((address, size))
        return 0

    def unregister(self, address: int) -> int:
        self.locked = [place for place in self.locked if place[0] != address]
        return 0


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    """A FakeGpu, to be entered by `with` around all that uses the device; the kernels run on the host."""
    gpu = FakeGpu()
    monkeypatch.setattr(Event, "gpu", gpu, raising=False)
    for name, value in {
        "Stream": Stream,
        "Event": Event,
        "stream": gpu.stream,
        "synchronize": lambda _=None: gpu.waits.append("the whole device"),
        "current_stream": lambda _=None: gpu.current,
        "device": lambda _: nullcontext(),
        "cudart": lambda: SimpleNamespace(cudaHostRegister=gpu.register, cudaHostUnregister=gpu.unregister),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    add, autocast = RowGradients.add, torch.autocast

    def add_noted(self: RowGradients, gradients: Any) -> None:
        with gpu:  # which doesn't hear of what a backward calls
            add(self, gradients)

    monkeypatch.setattr(RowGradients, "add", add_noted)
    monkeypatch.setattr(torch, "autocast", lambda _, **options: autocast("cpu", **options))
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)
    monkeypatch.setattr(embed, "cuda_module", lambda _: (_native, ""))
    return gpu

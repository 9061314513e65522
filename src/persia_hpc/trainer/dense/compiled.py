"""Runs the dense model through torch.compile, which makes fewer and larger kernels of it."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from persia_hpc.errors import UserError
from persia_hpc.trainer.batch import Batch
from persia_hpc.trainer.run_state import RunState

LOG = logging.getLogger("persia_hpc")
CACHE = "TORCHINDUCTOR_CACHE_DIR"
BACKEND = "inductor"  # torch's default; tests take one that needs no compiler


def _small(x: Tensor) -> Tensor:
    return (2 * x + 1).relu()


def check_compiler(device: torch.device) -> None:
    """Compiles a small function for `device`, forward and backward; takes seconds, or tens the first time.

    What torch.compile needs (compilers, headers, Triton, a folder for its cache) differs by device and
    version: only to try says whether it is there.

    Raises UserError if it isn't.
    """
    _check_cache(os.environ.get(CACHE))
    try:
        x = torch.ones(8, device=device, requires_grad=True)
        torch.compile(_small, backend=BACKEND)(x).sum().backward()  # type: ignore[no-untyped-call]
    except Exception as error:  # compilers and torch say very different things
        raise UserError(
            f"train.compile = true, but torch.compile doesn't work here for {device.type}: {_line(error)}; "
            f"it needs {_needs(device)}; or leave train.compile out"
        ) from error


def _check_cache(folder: str | None) -> None:
    """Checks that the folder which the user has named for torch's compiler takes files.

    Raises UserError if it doesn't.
    """
    if not folder:
        return
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"train.compile = true, but {CACHE}={folder} takes no files ({error.strerror}); name a folder "
            f"that does, unset {CACHE}, or leave train.compile out"
        ) from None


def _needs(device: torch.device) -> str:
    headers = "Python's headers"
    if device.type == "cuda":
        return f"Triton, a C compiler and {headers}"
    return f"a C++ compiler with OpenMP (g++, or what CXX names) and {headers}"


class CompiledModel:
    """Runs model(batch) compiled; if that can't be, says so once and runs the model as it is from then on.

    The model itself stays what it is, its names of parameters included: evaluations and checkpoints use it.
    """

    def __init__(self, model: nn.Module, state: RunState, warn: Callable[[int, str], None] | None = None):
        """Compiles nothing yet. state: gets the seconds of the first call, which compiles. warn: takes a step
        and a text for the screen; None for all trainers but one.
        """
        self.model = model
        self._state = state
        self._warn = warn
        for module in model.modules():
            hide = getattr(module, "hide_from_compiler", None)
            if type(module).__module__.startswith("persia_hpc.models.") and hide is not None:
                hide()
        self._compiled: Callable[[Batch], Tensor] | None = torch.compile(model, backend=BACKEND)

    def __call__(self, batch: Batch) -> Tensor:
        """Returns the logits."""
        problem = None
        if self._compiled is not None:
            try:
                return self._run(self._compiled, batch)
            except torch._dynamo.exc.TorchDynamoException as error:
                problem = error
        logits: Tensor = self.model(batch)  # an error of the model's own comes from here
        if problem is not None:
            self._compiled = None
            text = "train.compile: torch can't compile this model, which runs as it is from now on: "
            LOG.warning("%s%s", text, problem)
            if self._warn is not None:
                self._warn(batch.step, text + _line(problem))
        return logits

    def _run(self, compiled: Callable[[Batch], Tensor], batch: Batch) -> Tensor:
        for values, mask in batch.sequence.values():  # whose length changes from batch to batch
            torch._dynamo.maybe_mark_dynamic(values, 1)
            torch._dynamo.maybe_mark_dynamic(mask, 1)
        for jagged in batch.jagged.values():  # whose number of ids does
            for tensor in (jagged.values, jagged.weights):
                if tensor is not None:
                    torch._dynamo.maybe_mark_dynamic(tensor, 0)
        first = not self._state.compile_seconds
        if first:
            LOG.info("the dense network is being compiled")
        begin = time.perf_counter()
        with _backward_too():
            logits = compiled(batch)
        if first:
            self._state.compile_seconds = time.perf_counter() - begin
            LOG.info("compiled it in %.1f s", self._state.compile_seconds)
        return logits


def _backward_too() -> Any:
    """Returns a context in which the backward is compiled with the forward: it must not fail in mid-step."""
    from torch._functorch import config

    option = "force_non_lazy_backward_lowering"  # old versions lack it
    return config.patch({option: True}) if hasattr(config, option) else contextlib.nullcontext()


def _line(error: Exception) -> str:
    """Returns what went wrong: of a compiler's output its first error; torch's hints are left out."""
    text = str(error).partition("Set TORCHDYNAMO_VERBOSE")[0]
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    errors = [line for line in lines if " error: " in line]
    text = f"{lines[0]}: {errors[0]}" if errors else " ".join(lines)
    return text if len(text) <= 300 else f"{text[:297]}..."

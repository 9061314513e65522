"""A compiled model gives what the model gives, and one that can't be compiled runs as it is.

Backends that run what torch.compile has traced by plain operations need no compiler; one test takes the
real one.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import persia_hpc as ph
from persia_hpc.config import load_config
from persia_hpc.config.types import TrainConfig
from persia_hpc.errors import UserError
from persia_hpc.models import build_model
from persia_hpc.trainer.dense import compiled
from persia_hpc.trainer.dense.forward import Forward
from persia_hpc.trainer.device import prepare_device
from persia_hpc.trainer.pooling.embed import Pooling
from persia_hpc.trainer.run_state import RunState
from tests.support.models import Small
from tests.support.row_batches import make_inputs, make_row_batch, random_ids
from tests.support.tiny import run_digest, tiny_config, write_tiny

CPU = torch.device("cpu")
FEATURES = [("a", 4, "sum", False), ("b", 4, "mean", True), ("c", 4, "sequence", True)]
FEATURES += [("d", 4, "jagged", True)]
FULL = 16


class Normed(Small):
    """Has running statistics, and reads what isn't a tensor."""

    def __init__(self, inputs: Any):
        super().__init__(inputs)
        self.norm = torch.nn.BatchNorm1d(inputs.num_dense)

    def forward(self, batch: Any) -> torch.Tensor:
        assert batch.stacked(["a", "b"]).shape == (batch.num_samples, 2, 4)
        return super().forward(batch) * (1 + batch.step) + self.norm(batch.dense).sum(1, keepdim=True)


class Raises(Small):
    def forward(self, batch: Any) -> torch.Tensor:
        if batch.step == 3:
            raise ArithmeticError("the model can't do step 3")
        return super().forward(batch)


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Any:
    torch.compiler.reset()
    counter = CompileCounterWithBackend("eager")
    monkeypatch.setattr(compiled, "BACKEND", counter)
    return counter


def forward_of(model: torch.nn.Module, inputs: Any, said: list[str]) -> Forward:
    def warn(step: int, text: str) -> None:
        said.append(f"{step}: {text}")

    return Forward(model, TrainConfig(compile=True), inputs, CPU, FULL, RunState({}), warn)


def batch_of(inputs: Any, step: int, num_samples: int, most: int) -> Any:
    rng = np.random.default_rng(step)
    row_batch = make_row_batch(inputs, random_ids(inputs, num_samples, rng, most=most), rng)
    row_batch.step = step
    return Pooling(inputs).embed(row_batch, training=True)


def make(name: str, inputs: Any) -> torch.nn.Module:
    torch.manual_seed(1)
    return Normed(inputs) if name == "normed" else build_model(name, inputs, {"hidden": [8]})


@pytest.mark.parametrize("name", ["dlrm", "dcn_v2", "deepfm", "tower", "normed"])
def test_compiled_it_gives_what_the_model_gives(name: str, backend: Any) -> None:
    inputs = make_inputs(FEATURES)
    model = make(name, inputs)
    twin = copy.deepcopy(model)
    said: list[str] = []
    run = forward_of(model, inputs, said)
    compilations = []
    for step, (num_samples, most) in enumerate([(FULL, 3), (FULL, 5), (5, 2), (FULL, 4), (FULL, 6)], 1):
        results = []
        for call, its in ((run, model), (twin, twin)):
            batch, gradients = batch_of(inputs, step, num_samples, most)
            logits = call(batch)
            logits.square().sum().backward()
            results.append([logits, *(p.grad for p in its.parameters()), *its.buffers()])
            results[-1] += [torch.from_numpy(a) for a in gradients.arrays()]
            its.zero_grad(set_to_none=True)
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
        compilations.append(backend.frame_count)
    assert compilations[0] > 0
    assert compilations[-1] == compilations[1 if name == "normed" else 0]  # its steps are numbers: once more
    assert said == []
    assert model.state_dict().keys() == twin.state_dict().keys()
    model.eval(), twin.eval()
    assert torch.equal(run(batch), twin(batch))
    assert backend.frame_count == compilations[-1]


def test_a_model_that_cannot_be_compiled_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def broken(module: Any, example: Any) -> Any:
        tried.append(module)
        raise NotImplementedError("not this\nmodel")

    torch.compiler.reset()
    monkeypatch.setattr(compiled, "BACKEND", broken)
    inputs = make_inputs(FEATURES)
    model, said = make("tower", inputs), []
    run = forward_of(model, inputs, said)
    for step in (4, 5):
        batch, _ = batch_of(inputs, step, FULL, 3)
        assert torch.equal(run(batch), model(batch))
    assert len(tried) == 1
    (line,) = said
    assert line.startswith(
        "4: train.compile: torch can't compile this model, which runs as it is from now on:"
    )
    assert "not this model" in line
    with pytest.raises(UserError, match=r"= true, but .* cpu: .*not this model.*; it needs a C\+\+"):
        prepare_device(TrainConfig(compile=True, device="cpu"), 0)


def test_an_error_of_the_model_itself_stays_what_it_is(backend: Any) -> None:
    inputs = make_inputs(FEATURES)
    said: list[str] = []
    run = forward_of(Raises(inputs), inputs, said)
    run(batch_of(inputs, 2, FULL, 3)[0])
    with pytest.raises(ArithmeticError, match="the model can't do step 3"):
        run(batch_of(inputs, 3, FULL, 3)[0])
    assert said == []


def train(data: str, run_dir: Path, **changes: Any) -> dict[str, Any]:
    changes = {"run_dir": str(run_dir), "data.valid": data, "checkpoint.every": 3, **changes}
    return ph.train(tiny_config(data, **changes), quiet=True)


def test_a_run_that_compiles_is_the_same_run(backend: Any, tmp_path: Path) -> None:
    """Traced and run by the same operations it is equal to the bit: checkpoints, tails, evaluations."""
    data = write_tiny(tmp_path / "train.h5", 300)
    plain = train(data, tmp_path / "plain")
    whole = train(data, tmp_path / "whole", **{"train.compile": True})
    train(data, tmp_path / "resumed", **{"train.compile": True, "train.max_steps": 6})
    resumed = train(data, tmp_path / "resumed", **{"train.compile": True, "checkpoint.resume": True})
    assert (
        run_digest(tmp_path / "whole") == run_digest(tmp_path / "plain") == run_digest(tmp_path / "resumed")
    )
    assert whole["valid"] == plain["valid"] == resumed["valid"]
    assert plain["compile_seconds"] == 0 < whole["compile_seconds"]
    model = ph.load(tmp_path / "whole").model()
    assert not any("_orig_mod" in name for name in model.state_dict())


@pytest.mark.parametrize("quiet", [True, False])
def test_a_quiet_run_does_not_say_that_it_compiles(
    quiet: bool, backend: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = write_tiny(tmp_path / "train.h5", 60)
    changes = {"run_dir": str(tmp_path / "run"), "train.compile": True}
    assert ph.train(tiny_config(data, **changes), quiet=quiet)["compile_seconds"] > 0
    assert ("the dense network is being compiled" in capfd.readouterr().err) == (not quiet)


def test_a_folder_for_the_compiler_that_takes_no_files_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError) as caught:
        prepare_device(TrainConfig(compile=True, device="cpu"), 0)
    said = f"TORCHINDUCTOR_CACHE_DIR={tmp_path}/file/cache takes no files (Not a directory)"
    assert said in str(caught.value)


def test_the_real_compiler(tmp_path: Path) -> None:
    """With torch's own backend, which takes tens of seconds the first time on a machine."""
    torch.compiler.reset()
    data = write_tiny(tmp_path / "train.h5", 300)
    changes = {"model": {"class": "tower", "hidden": [8]}, "train.amp": "bf16"}
    plain = train(data, tmp_path / "plain", **changes)
    found = train(data, tmp_path / "compiled", **changes, **{"train.compile": True})
    assert found["compile_seconds"] > 0
    assert found["valid"]["logloss"] == pytest.approx(plain["valid"]["logloss"], rel=2e-2)
    events = [json.loads(line) for line in (tmp_path / "compiled/metrics.jsonl").read_text().splitlines()]
    assert not [event for event in events if event["event"] == "warning"]


def test_compiling_and_graphs_are_not_combined(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train.compile and train.cuda_graphs are both true"):
        load_config(tiny_config("x.h5", **{"train.compile": True, "train.cuda_graphs": True}))


def test_the_device_is_set_up_as_configured() -> None:
    for precision in ("high", "highest"):
        assert prepare_device(TrainConfig(device="cpu", matmul_precision=precision), 0) == CPU
        assert torch.get_float32_matmul_precision() == precision

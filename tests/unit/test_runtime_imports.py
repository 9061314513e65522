"""Importing without the collector: it rests, comes back as it was, and what was imported is left out."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from persia_hpc.runtime.imports import import_quickly
from tests.support.jobs import write_config
from tests.support.tiny import tiny_config, write_tiny


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("fails", [False, True])
def test_the_collector_rests_during_the_import_only(
    enabled: bool, fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"slow_package_{enabled}_{fails}"
    text = f"import gc\nresting = not gc.isenabled()\nassert not {fails}\n"
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    (gc.enable if enabled else gc.disable)()
    try:
        if fails:
            with pytest.raises(AssertionError):
                import_quickly(name)
            assert gc.isenabled() == enabled
            return
        import_quickly(name)
        assert sys.modules[name].resting
        assert gc.isenabled() == enabled
        frozen = gc.get_freeze_count()
        assert frozen > 0
        gc.unfreeze()
        import_quickly(name)  # is there: nothing is done
        assert gc.get_freeze_count() == 0
    finally:
        gc.enable()
        gc.unfreeze()
        sys.modules.pop(name, None)


def test_a_run_in_one_process_imports_torch_so(tmp_path: Path) -> None:
    path = str(write_config(tmp_path / "job.toml", tiny_config(write_tiny(tmp_path / "train.h5", 20))))
    code = "import gc, sys; from persia_hpc.cli import main\n"
    code += "code = main(sys.argv[1:]); print(code, gc.isenabled(), gc.get_freeze_count() > 100_000)"
    command = [sys.executable, "-c", code, "train", path, "--one-process", "--quiet"]
    command += ["--run-dir", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "0 True True\n"


def test_no_process_is_started_by_the_imports_of_a_rank() -> None:
    code = (
        "import platform, sys; from persia_hpc.runtime.imports import import_quickly\n"
        "started = []\n"
        "sys.addaudithook(lambda event, given: event == 'subprocess.Popen' and started.append(given))\n"
        "import_quickly('persia_hpc.job.rank'); print(len(started), 'h5py' in sys.modules)\n"
        "platform.processor(); print(len(started))"  # is asked for as ever
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "0 True\n1\n"


EAGER = """
import sys
from persia_hpc.runtime.imports import import_torch
import_torch(eager=len(sys.argv) == 1)
import torch
left_out = "torch._prims" not in sys.modules
model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
with torch.no_grad():
    for number, parameter in enumerate(model.parameters()):
        parameter.copy_(torch.linspace(-1, 1, parameter.numel()).reshape(parameter.shape) + number / 7)
loss = torch.nn.functional.binary_cross_entropy_with_logits(model(torch.eye(3)), torch.ones(3, 1))
loss.backward()
print(loss.item().hex(), [float(p.grad.sum()).hex() for p in model.parameters()])
import torch._meta_registrations  # is there for whoever asks
print(torch.linalg.qr(torch.ones(3, 2, device="meta"))[0].shape, "torch._prims" in sys.modules)
print(left_out)
"""


def test_eager_torch_computes_the_same_and_leaves_out_what_only_compilers_need() -> None:
    found = [
        subprocess.run(
            [sys.executable, "-c", EAGER, *whole], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        for whole in ([], ["whole"])
    ]
    assert found[0][:-1] == found[1][:-1]
    assert (found[0][-1], found[1][-1]) == ("True", "False")
    assert found[0][1] == "torch.Size([3, 2]) True"

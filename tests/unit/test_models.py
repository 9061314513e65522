from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from persia_hpc import _native
from persia_hpc.config.types import MODELS
from persia_hpc.errors import UserError
from persia_hpc.models import BUILT_IN, build_model
from persia_hpc.models.parts import masked_mean
from persia_hpc.protocol.row_batch import RowBatch
from persia_hpc.trainer.batch import Batch, Inputs
from persia_hpc.trainer.dense.precision import Precision
from persia_hpc.trainer.pooling.embed import Pooling
from persia_hpc.trainer.pooling.gradients import RowGradients
from tests.support.row_batches import make_inputs, make_row_batch, random_ids

SAME_DIM = [
    ("a", 4, "sum", False),
    ("b", 4, "mean", True),
    ("c", 4, "sequence", True),
    ("d", 4, "sum", False),
]
MIXED_DIMS = [
    ("a", 4, "sum", False),
    ("b", 2, "mean", True),
    ("c", 4, "sequence", True),
    ("d", 8, "sum", False),
]
ONLY_SEQUENCES = [("a", 4, "sequence", True), ("b", 4, "sequence", False)]
NO_FEATURES: list[tuple[str, int, str, bool]] = []
SMALL: dict[str, dict[str, Any]] = {
    "dlrm": {"hidden": [8], "bottom": [8]},
    "dcn_v2": {"hidden": [8, 4]},
    "deepfm": {"hidden": [8]},
    "tower": {"hidden": [16, 8]},
    "mmoe": {"experts": 3, "expert": [8], "tower": [8]},
    "ple": {"experts": [[8], [8]], "own": 1, "tower": [8]},
}
ANY_DATA = list(SMALL)  # the others are in tests of their own


def feed_of(inputs: Inputs, num_samples: int, seed: int = 0) -> RowBatch:
    rng = np.random.default_rng(seed)
    return make_row_batch(inputs, random_ids(inputs, num_samples, rng), rng)


def embedded(inputs: Inputs, row_batch: RowBatch) -> tuple[Batch, RowGradients]:
    return Pooling(inputs).embed(row_batch, training=True)


def test_options_of_built_in_models_are_documented() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs/configuration.md").read_text()
    documented = re.findall(r"^\| (\w+) \| `(\w+)` \| (?:`(.*?)`|–) \|", page, re.MULTILINE)
    expected = [("all", "activation", '"relu"'), ("all", "dropout", "0.0"), ("all", "batch_norm", "false")]
    for name, (module, factory) in BUILT_IN.items():
        options = signature(getattr(import_module(f"persia_hpc.models.{module}"), factory)).parameters
        for option in list(options.values())[1:]:
            value = option.default
            row = (name, option.name, "" if value in (None, option.empty) else json.dumps(value))
            if ("all", *row[1:]) not in expected:
                expected.append(row)
    assert sorted(documented) == sorted(expected)


def small(name: str, inputs: Inputs, **more: Any) -> nn.Module:
    torch.manual_seed(1)
    return build_model(name, inputs, {**SMALL[name], **more})


def test_the_configuration_knows_all_models() -> None:
    assert tuple(BUILT_IN) == MODELS


@pytest.mark.parametrize("name", ANY_DATA)
@pytest.mark.parametrize("num_dense", [0, 3])
@pytest.mark.parametrize("features", [SAME_DIM, MIXED_DIMS, ONLY_SEQUENCES, SAME_DIM[:1]])
def test_every_parameter_and_row_learns(name: str, num_dense: int, features: list, request: Any) -> None:
    if name in ("dlrm", "deepfm") and features is MIXED_DIMS:
        with pytest.raises(UserError, match=r"all dims must be equal, got \{'a': 4, 'b': 2"):
            small(name, make_inputs(features, num_dense=num_dense))
        return
    inputs = make_inputs(features, num_dense=num_dense, labels=2)
    model = small(name, inputs)
    batch, gradients = embedded(inputs, feed_of(inputs, 40))
    logits = model(batch)
    assert logits.shape == (40, 2)
    nn.functional.binary_cross_entropy_with_logits(logits, batch.labels).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.any(), parameter_name
    for gradient in gradients.arrays():
        assert gradient.any(axis=1).all()


@pytest.mark.parametrize("name", ANY_DATA)
def test_a_batch_without_samples(name: str) -> None:
    inputs = make_inputs(SAME_DIM)
    batch, _ = embedded(
        inputs, make_row_batch(inputs, {f[0]: [] for f in SAME_DIM}, np.random.default_rng(0))
    )
    assert small(name, inputs)(batch).shape == (0, 1)


@pytest.mark.parametrize("name", ["tower", "dcn_v2"])
def test_dense_features_alone_are_enough(name: str) -> None:
    inputs = make_inputs(NO_FEATURES, num_dense=3)
    zero = np.zeros(1, np.uint32)
    none = np.zeros(0, np.uint32)
    dense, labels = np.ones((5, 3), np.float32), np.ones((5, 1), np.float32)
    row_batch = RowBatch(1, 0, 5, 5, [], none.astype(np.uint16), zero, {}, zero, none, zero, dense, labels)
    batch, gradients = embedded(inputs, row_batch)
    assert small(name, inputs)(batch).shape == (5, 1)
    assert gradients.arrays() == []


@pytest.mark.parametrize("name", ANY_DATA)
def test_nothing_to_learn_from(name: str) -> None:
    with pytest.raises(UserError, match=r"neither id features nor dense|at least one id feature"):
        small(name, make_inputs(NO_FEATURES, num_dense=0))


@pytest.mark.parametrize("name", ANY_DATA)
def test_where_the_feed_puts_a_feature_does_not_matter(name: str) -> None:
    """The model asks by name: a batch that lists its tensors in another order gives the same logits."""
    inputs = make_inputs(SAME_DIM)
    model = small(name, inputs)
    batch, _ = embedded(inputs, feed_of(inputs, 10))
    shuffled = replace(
        batch,
        pooled=dict(reversed(batch.pooled.items())),
        blocks={tuple(reversed(k)): v.flip(1) for k, v in batch.blocks.items()},
    )
    torch.testing.assert_close(model(shuffled), model(batch))
    swapped = replace(
        batch, pooled={**batch.pooled, "a": batch.pooled["d"], "d": batch.pooled["a"]}, blocks={}
    )
    assert not torch.allclose(model(swapped), model(batch))


@pytest.mark.parametrize("structure", ["parallel", "stacked"])
@pytest.mark.parametrize("low_rank", [None, 2])
def test_dcn_v2_is_its_definition(structure: str, low_rank: int | None) -> None:
    inputs = make_inputs(MIXED_DIMS)
    model = small("dcn_v2", inputs, structure=structure, low_rank=low_rank, cross_layers=2)
    batch, _ = embedded(inputs, feed_of(inputs, 6))
    first = torch.cat([batch.dense, *batch.pooled.values(), masked_mean(*batch.sequence["c"])], 1)
    x = first
    for cross in model.crosses:
        x = first * cross.weight(x) + x
    tail = torch.cat([x, model.deep(first)], 1) if structure == "parallel" else model.deep(x)
    torch.testing.assert_close(model(batch), model.head(tail))
    matrix = 20 * 20 if low_rank is None else 2 * 20 * low_rank
    assert sum(p.numel() for p in model.crosses[0].parameters()) == matrix + 20


def test_the_tower_is_the_papers_by_default() -> None:
    inputs = make_inputs(SAME_DIM)
    with torch.device("meta"):
        model = build_model("tower", inputs, {})
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    assert [m.out_features for m in layers] == [4096, 2048, 1024, 512, 256, 1]
    assert layers[0].in_features == 2 + 16


def test_masked_mean_ignores_what_the_mask_hides() -> None:
    values = torch.tensor([[[1.0], [5.0]], [[3.0], [float("inf")]], [[7.0], [7.0]]])
    mask = torch.tensor([[True, True], [True, False], [False, False]])
    values = torch.where(mask[..., None], values, torch.zeros(()))
    assert masked_mean(values, mask).tolist() == [[3.0], [3.0], [0.0]]
    assert masked_mean(torch.zeros(2, 0, 3), torch.zeros(2, 0, dtype=torch.bool)).tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("name", ANY_DATA)
def test_bfloat16_autocast(name: str) -> None:
    inputs = make_inputs(SAME_DIM)
    model = small(name, inputs)
    batch, gradients = embedded(inputs, feed_of(inputs, 10))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(batch)
    logits.float().sum().backward()
    assert {g.dtype for g in gradients.arrays()} == {np.dtype(np.float32)}
    torch.testing.assert_close(logits.float(), model(batch), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("name", ANY_DATA)
@pytest.mark.parametrize("num_dense", [0, 3])
@pytest.mark.parametrize("features", [SAME_DIM, SAME_DIM[:2]])
def test_narrow_pooled_vectors_change_no_bit_where_a_model_takes_them(
    name: str, num_dense: int, features: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU's code, on the host: pooled vectors in bf16 give what autocast's own cast of them gives."""
    monkeypatch.setattr(_native, "has_bf16", lambda: False)  # torch computes all of a GPU's network
    inputs = make_inputs(features, num_dense=num_dense)
    results = []
    for narrow in (False, True):
        model = small(name, inputs)
        dtype = Precision("bf16", torch.device("cpu")).pooled_dtype(model) if narrow else torch.float32
        row_batch = feed_of(inputs, 50)
        batch, gradients = Pooling(inputs, kernel="cuda").embed(row_batch, training=True, pooled=dtype)
        assert all(values.dtype == dtype for values in batch.pooled.values())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(batch).float()
        nn.functional.binary_cross_entropy_with_logits(logits, batch.labels).backward()
        dense = [p.grad.numpy() for p in model.parameters() if p.grad is not None]
        results.append([logits.detach().numpy(), *dense, *gradients.arrays()])
    assert all(np.array_equal(a, b) for a, b in zip(*results, strict=True))
    takes = {"tower": True, "dcn_v2": True, "dlrm": num_dense > 0, "mmoe": True, "ple": True}
    assert (dtype == torch.bfloat16) == takes.get(name, False)


@pytest.mark.parametrize("name", ["tower", "dcn_v2", "dlrm"])
@pytest.mark.parametrize("num_dense", [0, 3])
def test_narrow_pooled_vectors_are_taken_without_autocast_too(name: str, num_dense: int) -> None:
    """A loop of one's own may call the model itself."""
    inputs = make_inputs(SAME_DIM, num_dense=num_dense)
    model, row_batch = small(name, inputs), feed_of(inputs, 20)
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        batch, gradients = Pooling(inputs, kernel="cuda").embed(row_batch, training=True, pooled=dtype)
        logits = model(batch)
        logits.sum().backward()
        assert len(gradients.arrays()) > 0
        results.append(logits.detach())
    torch.testing.assert_close(results[1], results[0], rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("dlmr", {}, "'dlmr' is unknown; built-in: dlrm, .*, hstu; yours: 'module:Class'"),
        ("tower", {"hiden": [8]}, r"hiden.*it takes: hidden"),
        ("tower", {"hidden": []}, r"hidden must be a list of positive widths like \[256, 128\], got \[\]"),
        ("tower", {"hidden": [8, -1]}, "hidden must be a list"),
        ("tower", {"hidden": 8}, "hidden must be a list"),
        ("tower", {"activation": "rely"}, "activation must be one of relu, dice.*got 'rely'"),
        ("mmoe", {"batch_norm": "false"}, "batch_norm must be true or false, got 'false'"),
        ("deepfm", {"id_weights": 1}, "id_weights must be true or false, got 1"),
        ("din", {"softmax": "no"}, "softmax must be true or false, got 'no'"),
        ("dlrm", {"bottom_dropout": -0.1}, "bottom_dropout must be a number from 0 to below 1, got -0.1"),
        ("dcn_v2", {"dropout": 1}, "dropout must be a number from 0 to below 1, got 1"),
        ("mmoe", {"experts": 0}, "experts must be an integer of at least 1, got 0"),
        ("ple", {"experts": [8]}, "experts must be a list of positive widths"),
        ("ple", {"experts": []}, "experts must be a list of levels"),
        ("ple", {"own": 1.5}, "own must be an integer"),
        ("esmm", {}, "'esmm' learns two labels.*got label0"),
        ("din", {}, "found no sequence that shares its table"),
        ("din", {"attend": [{"targets": ["a"]}]}, "attend must be a list such as"),
        ("din", {"attend": [{"targets": "a", "histories": "c"}]}, "attend must be a list such as"),
        ("din", {"attend": [{"targets": ["x"], "histories": ["c"]}]}, "'x', which is no pooled feature"),
        ("din", {"attend": [{"targets": ["a"], "histories": ["b"]}]}, "'b', which is no sequence"),
        ("din", {"attend": [{"targets": ["a", "d"], "histories": ["c"]}]}, r"dims \[4, 4\] with c of"),
        ("din", {"attend": [{"targets": [], "histories": ["c"]}]}, "attend needs at least one pooled"),
        ("dlrm", {"bottom": [True]}, "bottom must be a list"),
        ("dcn_v2", {"structure": "serial"}, "parallel.*stacked.*got 'serial'"),
        ("dcn_v2", {"cross_layers": 0}, "cross_layers must be at least 1, got 0"),
        ("dcn_v2", {"low_rank": 0}, "low_rank must be a positive rank"),
    ],
)
def test_bad_options_of_built_in_models(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build_model(name, make_inputs(SAME_DIM), arguments)
    assert "\n" not in str(caught.value)


USER_MODULE = """
import torch
from torch import nn

class TwoTower(nn.Module):
    def __init__(self, inputs, hidden, dropout=0.1):
        super().__init__()
        self.inputs, self.hidden = inputs, hidden
        self.layer = nn.Linear(hidden[0], 1)

class NotAModule:
    def __init__(self, inputs): ...

number = 3
"""


@pytest.fixture
def user_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "my_towers.py").write_text(USER_MODULE)
    (tmp_path / "my_broken.py").write_text("import torch\nx = 1 +\n")
    (tmp_path / "my_failing.py").write_text("\n\nraise RuntimeError('no good')\n")
    (tmp_path / "my_import.py").write_text("import surely_not_installed\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before, path = set(sys.modules), list(sys.path)
    yield tmp_path
    assert [folder for folder in sys.path if folder != str(tmp_path)] == path
    for name in set(sys.modules) - before:
        if name.startswith("my_"):
            del sys.modules[name]


def test_a_users_model_from_the_current_directory(user_directory: Path) -> None:
    inputs = make_inputs(SAME_DIM)
    model = build_model("my_towers:TwoTower", inputs, {"hidden": [4]})
    assert type(model).__name__ == "TwoTower"
    assert model.inputs is inputs
    assert model.hidden == [4]


@pytest.mark.parametrize(
    ("path", "arguments", "message"),
    [
        ("my_towers:TwoTowr", {}, "no 'TwoTowr'; did you mean 'TwoTower'"),
        ("my_towers:Zzz", {}, "no 'Zzz'; it defines: TwoTower, NotAModule"),
        ("my_towers:TwoTower", {}, r"missing.*'hidden'.*got no option, it takes: hidden, dropout=0.1"),
        ("my_towers:TwoTower", {"hidden": [4], "x": 1}, r"'x'.*got \['hidden', 'x'\], it takes: hidden"),
        ("my_towers:TwoTower", {"hidden": []}, r"IndexError: .*my_towers.py:9\)"),
        ("my_towers:NotAModule", {}, "expected a torch.nn.Module, got NotAModule"),
        ("my_towers:number", {}, "expected a class, got int"),
        ("my_absent:Model", {}, "no module 'my_absent' in .* or set PYTHONPATH"),
        ("my_broken:Model", {}, r"SyntaxError: .*my_broken.py:2\)"),
        ("my_failing:Model", {}, r"RuntimeError: no good \(.*my_failing.py:3\)"),
        ("my_import:Model", {}, r"No module named 'surely_not_installed' \(.*my_import.py:1\)"),
        ("models/my_towers.py:TwoTower", {}, "for a file write models.my_towers:TwoTower"),
        ("my_towers:", {}, 'expected "module:name"'),
    ],
)
def test_a_users_model_that_does_not_work(
    user_directory: Path, path: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build_model(path, make_inputs(SAME_DIM), arguments)
    assert "\n" not in str(caught.value)


def test_naming_models_does_not_import_torch() -> None:
    code = "import persia_hpc.models, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

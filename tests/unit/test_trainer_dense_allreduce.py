"""Buckets that start during backward: in one order, and with the gradients that are there in the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from persia_hpc.errors import UserError
from persia_hpc.trainer.dense import allreduce
from persia_hpc.trainer.dense.allreduce import DenseReducer
from persia_hpc.trainer.dense.buckets import Bucket
from persia_hpc.trainer.interfaces import NoPeers

LAYER = 4 * (6 * 6 + 6)  # bytes
Forward = Callable[["Net", Tensor], Tensor]


class Twins:
    """Stands for two trainers with equal gradients: a sum is twice what a bucket held when it was started."""

    def __init__(self) -> None:
        self.started: list[int] = []
        self.during_backward = 0
        self._backward = False
        self._taken: dict[int, Tensor] = {}

    def attach(
        self, lengths: Sequence[int], dtype: torch.dtype, device: torch.device
    ) -> list[tuple[Tensor, Tensor]]:
        self.lengths = list(lengths)
        self._pairs = [(torch.zeros(n, dtype=dtype), torch.zeros(n)) for n in lengths]
        return self._pairs

    def start(self, index: int) -> None:
        self.started.append(index)
        self._taken[index] = self._pairs[index][0].float()

    def progress(self) -> None:
        pass

    def finish(self, index: int) -> None:
        self._pairs[index][1].copy_(2 * self._taken.pop(index))

    def close(self) -> None:
        pass


class Net(nn.Module):
    """Four layers, of which a forward may use some, several times."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.ModuleList([nn.Linear(6, 6) for _ in range(4)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


def skipping(net: Net, x: Tensor) -> Tensor:
    return net.layers[3](net.layers[1](x))


def sharing(net: Net, x: Tensor) -> Tensor:
    return net.layers[3](torch.tanh(net.layers[0](torch.tanh(net.layers[3](x)))))


def checkpointed_twice(net: Net, x: Tensor) -> Tensor:
    """The last layer gets its gradient in two parts, by two backwards inside the backward."""
    x = x.requires_grad_()
    for layer in (net.layers[3], net.layers[0], net.layers[3]):
        x = checkpoint(layer, torch.tanh(x), use_reentrant=True)
    return x


def differentiated_inside(net: Net, x: Tensor) -> Tensor:
    x = x.requires_grad_()
    y = net(x)
    (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    return y + slope


def whole(net: Net, x: Tensor) -> Tensor:
    return net(x)


def train(forward: Forward, *, overlap: bool, bucket_bytes: int = LAYER) -> tuple[Twins, list[Tensor]]:
    net, sums = Net(), Twins()
    reducer = DenseReducer(sums, NoPeers(), bucket_bytes, overlap=overlap)
    reducer.attach(net)
    x = torch.linspace(-1, 1, 30).view(5, 6)
    for _ in range(2):
        for p in net.parameters():
            p.grad = None
        loss = forward(net, x.clone()).square().sum()
        sums.started.clear()
        reducer.begin()
        loss.backward()
        sums.during_backward = len(sums.started)
        sums.started.clear()
        reducer.reduce()
    return sums, [p.grad for p in net.parameters() if p.grad is not None]


def expected(forward: Forward) -> list[Tensor]:
    net = Net()
    forward(net, torch.linspace(-1, 1, 30).view(5, 6).clone()).square().sum().backward()
    return [torch.zeros_like(p) if p.grad is None else 2 * p.grad for p in net.parameters()]


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize(
    "forward", [whole, skipping, sharing, checkpointed_twice, differentiated_inside], ids=lambda f: f.__name__
)
def test_sums_are_those_of_the_gradients_after_backward(forward: Forward, overlap: bool) -> None:
    _, found = train(forward, overlap=overlap)
    for gradient, reference in zip(found, expected(forward), strict=True):
        assert torch.equal(gradient, reference)


def test_a_trainer_says_that_it_waits_for_sums_of_others() -> None:
    waiting: list[bool] = []

    class Watched(NoPeers):
        @contextmanager
        def wait(self) -> Iterator[None]:
            waiting.append(True)
            yield
            waiting.pop()

    class Asked(Twins):
        def finish(self, index: int) -> None:
            assert waiting
            super().finish(index)

    reducer, net = DenseReducer(Asked(), Watched(), LAYER), Net()
    reducer.attach(net)
    net(torch.ones(2, 6)).sum().backward()
    reducer.reduce()
    assert not waiting


def test_buckets_start_during_backward_from_the_last_layer_on() -> None:
    sums, _ = train(whole, overlap=True)
    assert sums.lengths == [42, 42, 42, 42 + 2 + 1]  # the last with the verdict, and whether to sum again
    assert sums.during_backward == 3
    assert sums.started == [3]
    sums, _ = train(whole, overlap=False)
    assert sums.during_backward == 0
    assert sums.started == [0, 1, 2, 3]


def test_a_bucket_waits_for_those_before_it() -> None:
    """The unused third layer's gradients never come, so that nothing after it can start."""
    sums, _ = train(skipping, overlap=True)
    assert sums.during_backward == 1
    assert sums.started == [1, 2, 3]


def test_a_gradient_that_changes_after_its_bucket_started_is_summed_again() -> None:
    sums, _ = train(checkpointed_twice, overlap=True)
    assert sums.during_backward == 1
    assert sums.started == [1, 2, 3, 0, 1, 2, 3]


class OtherChanged(Twins):
    """Stands for two trainers, of which the other tells that a gradient has changed after it was sent."""

    def finish(self, index: int) -> None:
        super().finish(index)
        if index == len(self.lengths) - 1 and self.started.count(0) == 1:
            self._pairs[index][1][-1] += 1


@pytest.mark.parametrize("copied", [False, True])
def test_all_trainers_sum_again_if_one_must(copied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those too that start nothing during backward, on a GPU, while another on a CPU does."""

    class OnGpu(Bucket):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.copied = copied

    monkeypatch.setattr(allreduce, "Bucket", OnGpu)
    net, sums = Net(), OtherChanged()
    reducer = DenseReducer(sums, NoPeers(), LAYER)
    reducer.attach(net)
    reducer.begin()
    net(torch.linspace(-1, 1, 30).view(5, 6)).square().sum().backward()
    assert sums.started == ([] if copied else [0, 1, 2])
    reducer.reduce()
    assert sums.started == [0, 1, 2, 3] * 2
    for p, reference in zip(net.parameters(), expected(whole), strict=True):
        assert p.grad is not None
        assert torch.equal(p.grad, reference)


def test_one_bucket_needs_no_hooks() -> None:
    sums, found = train(whole, overlap=True, bucket_bytes=1 << 20)
    assert (sums.lengths, sums.during_backward, sums.started) == ([4 * 42 + 3], 0, [0])
    assert all(map(torch.equal, found, expected(whole)))


def test_gradients_that_come_outside_of_a_step_start_nothing() -> None:
    net, sums = Net(), Twins()
    reducer = DenseReducer(sums, NoPeers(), LAYER)
    reducer.attach(net)
    net(torch.ones(2, 6)).sum().backward()
    assert sums.started == []
    reducer.close()
    reducer = DenseReducer(sums, NoPeers(), LAYER)
    reducer.attach(net)
    reducer.attach(net)  # a second time: its hooks are there once
    reducer.begin()
    for p in net.parameters():
        p.grad = None
    net(torch.ones(2, 6)).sum().backward()
    assert sums.started == [0, 1, 2]


@pytest.mark.parametrize("overlap", [False, True])
def test_sparse_gradients_are_refused_after_backward(overlap: bool) -> None:
    table = nn.EmbeddingBag(4, 6, sparse=True)
    net = nn.ModuleList([nn.Linear(6, 6), table])
    reducer = DenseReducer(Twins(), NoPeers(), LAYER, overlap=overlap)
    reducer.attach(net)
    reducer.begin()
    net[0](table(torch.tensor([[1, 2]]))).sum().backward()
    with pytest.raises(UserError, match=r"shape \[4, 6\] has sparse gradients"):
        reducer.reduce()


class SecondOfTwo(NoPeers):
    """Stands for trainer 0, whose model is `first`; this is trainer 1."""

    rank, size = 1, 2

    def __init__(self, first: nn.Module) -> None:
        self._first = first

    def broadcast(self, value: Any) -> Any:
        if isinstance(value[0], Tensor):
            return [t.detach() for t in self._first.state_dict().values()]
        return [(name, tuple(p.shape)) for name, p in self._first.named_parameters() if p.requires_grad]


def test_trainers_with_other_parameters_are_refused() -> None:
    """Their gradients would be added to those of other parameters."""
    first, other = Net(), Net()
    other.layers[1].bias.requires_grad_(False)
    DenseReducer(Twins(), SecondOfTwo(first), LAYER).attach(Net())
    for mine, whose, message in (
        (other, first, r"trainer 1 trains no others.*, trainer 0 layers\.1\.bias \[6\]: make the same model"),
        (first, other, r"trainer 1 trains layers\.1\.bias \[6\], trainer 0 no others"),
    ):
        with pytest.raises(UserError, match=message):
            DenseReducer(Twins(), SecondOfTwo(whose), LAYER).attach(mine)


@pytest.mark.parametrize(("wire", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_a_narrow_wire_rounds_each_trainers_gradients(wire: str, dtype: torch.dtype) -> None:
    net = nn.Linear(6, 6)
    reducer = DenseReducer(Twins(), NoPeers(), LAYER, wire=wire)
    reducer.attach(net)
    torch.manual_seed(0)
    gradients = [torch.randn_like(p) for p in net.parameters()]
    gradients[1][0] = 1e6  # too large for fp16
    for p, gradient in zip(net.parameters(), gradients, strict=True):
        p.grad = gradient.clone()
    reducer.told.grad = torch.tensor([1.0, 0.0])
    reducer.reduce()
    for p, gradient in zip(net.parameters(), gradients, strict=True):
        assert p.grad is not None
        assert torch.equal(p.grad, 2 * gradient.to(dtype).float())
    assert reducer.told.grad.tolist() == [2.0, 0.0]
    assert net.bias.grad is not None
    assert net.bias.grad.isinf().any() == (wire == "fp16")

"""Published models in plain PyTorch, and Adam of the rows that a step uses, for published.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

DIM, HIDDEN = 10, [64, 64]


class RowAdam(torch.optim.Optimizer):
    """Is torch.optim.Adam on each row of sparse gradients, with a step count of its own."""

    def __init__(self, tables: Any, lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(tables, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for table in group["params"]:
                state, gradient = self.state[table], table.grad.coalesce()
                if not state:
                    state |= {"m": torch.zeros_like(table), "v": torch.zeros_like(table)}
                    state["steps"] = torch.zeros(len(table), 1)
                rows, g = gradient.indices()[0], gradient.values()
                g = g + group["weight_decay"] * table[rows]
                state["steps"][rows] += 1
                state["m"][rows] = m = 0.9 * state["m"][rows] + 0.1 * g
                state["v"][rows] = v = 0.999 * state["v"][rows] + 0.001 * g * g
                steps = state["steps"][rows]
                root = (v / (1 - 0.999**steps)).sqrt() + 1e-8
                table[rows] -= group["lr"] / (1 - 0.9**steps) * m / root


def perceptron(width: int, widths: list[int] = HIDDEN, *, normalised: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for hidden in widths:
        norm = [nn.BatchNorm1d(hidden)] if normalised else []
        layers += [nn.Linear(width, hidden), *norm, nn.ReLU()]
        width = hidden
    return nn.Sequential(*layers)


class Level(nn.Module):
    """A level of PLE for one task: two experts of its own and a shared one."""

    def __init__(self, width: int, made: int, *, last: bool, normalised: bool) -> None:
        super().__init__()
        self.own = nn.ModuleList(perceptron(width, [made], normalised=normalised) for _ in range(2))
        self.shared = perceptron(width, [made], normalised=normalised)
        self.gate = nn.Linear(width, 3)
        self.shared_gate = None if last else nn.Linear(width, 3)

    def forward(self, of_task: Tensor, of_all: Tensor) -> tuple[Tensor, Tensor]:
        made = torch.stack([*(expert(of_task) for expert in self.own), self.shared(of_all)], dim=1)
        mixed = (torch.softmax(self.gate(of_task), dim=1).unsqueeze(1) @ made).squeeze(1)
        if self.shared_gate is None:
            return mixed, of_all
        return mixed, (torch.softmax(self.shared_gate(of_all), dim=1).unsqueeze(1) @ made).squeeze(1)


class Plain(nn.Module):
    """The published formulas, with an nn.Embedding for each feature."""

    def __init__(
        self, model: str, vocabularies: list[int], num_dense: int, *, sparse: bool, normalised: bool
    ) -> None:
        super().__init__()
        self.model = model
        weighted = model in ("deepfm", "fm")
        self.tables = nn.ModuleList(
            nn.Embedding(size + 1, DIM + weighted, sparse=sparse, padding_idx=0) for size in vocabularies
        )
        for table in self.tables:
            nn.init.normal_(table.weight, std=1e-4)
            with torch.no_grad():
                table.weight[0].zero_()
        width = DIM * len(vocabularies) + num_dense
        # In the order in which ours has them: `begin_alike` copies parameter by parameter.
        self.linear = nn.Linear(num_dense, 1) if weighted else None
        self.crosses = nn.ModuleList(nn.Linear(width, width) for _ in range(3 if model == "dcn_v2" else 0))
        self.bottom: nn.Sequential | None = None
        if model == "dlrm":
            count = len(vocabularies)
            if num_dense:
                self.bottom = perceptron(num_dense, HIDDEN[:1], normalised=normalised)
                self.bottom.extend([nn.Linear(HIDDEN[0], DIM), nn.ReLU()])
                count += 1
            self.pairs = torch.tril_indices(count, count, offset=-1)
            width = DIM * (1 if num_dense else count) + self.pairs.shape[1]
        experts = 4 if model == "mmoe" else 0
        self.experts = nn.ModuleList(perceptron(width, normalised=normalised) for _ in range(experts))
        self.gate = nn.Linear(width, experts) if experts else None
        self.levels = nn.ModuleList()
        for made in HIDDEN if model == "ple" else []:
            last = len(self.levels) == len(HIDDEN) - 1
            self.levels.append(Level(width, made, last=last, normalised=normalised))
            width = made
        if experts:
            width = HIDDEN[-1]
        widths = HIDDEN[:1] if experts or self.levels else HIDDEN
        self.deep = perceptron(width, widths, normalised=normalised) if model != "fm" else None
        ends = widths[-1] + (width if model == "dcn_v2" else 0)
        self.last = nn.Linear(ends, 1) if model != "fm" else None

    def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
        rows = torch.stack([table(ids[:, i]) for i, table in enumerate(self.tables)], dim=1)
        vectors = rows[:, :, :DIM]
        total = vectors.new_zeros(len(ids), 1)
        if self.linear is not None:
            pairs = (vectors.sum(dim=1) ** 2 - (vectors**2).sum(dim=1)).sum(dim=1, keepdim=True) / 2
            total = self.linear(dense) + rows[:, :, DIM].sum(dim=1, keepdim=True) + pairs
        if self.deep is None or self.last is None:
            return total
        x = self._multiplied(dense, vectors) if self.model == "dlrm" else None
        if x is None:
            x = torch.cat([dense, vectors.flatten(1)], dim=1)
        if self.gate is not None:
            made = torch.stack([expert(x) for expert in self.experts], dim=1)
            x = (torch.softmax(self.gate(x), dim=1).unsqueeze(1) @ made).squeeze(1)
        of_all = x
        for level in self.levels:
            x, of_all = level(x, of_all)
        made = self.deep(x)
        if self.crosses:
            crossed = x
            for cross in self.crosses:
                crossed = x * cross(crossed) + crossed
            made = torch.cat([crossed, made], dim=1)
        return total + self.last(made)

    def _multiplied(self, dense: Tensor, vectors: Tensor) -> Tensor:
        if self.bottom is not None:
            vectors = torch.cat([self.bottom(dense).unsqueeze(1), vectors], dim=1)
        products = (vectors @ vectors.transpose(1, 2))[:, self.pairs[0], self.pairs[1]]
        copied = vectors[:, 0] if self.bottom is not None else vectors.flatten(1)
        return torch.cat([copied, products], dim=1)

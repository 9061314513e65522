"""DIN (Zhou et al., "Deep interest network for click-through rate prediction", KDD 2018, arXiv 1706.06978).

B samples, L length, W width of an event: the dims of its features side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from persia_hpc.trainer.batch import Batch, Inputs

from .histories import Attend, padded, pairs_of, unequal
from .parts import check_flag, layer_options, masked_mean, perceptron, side_by_side, widths


class TargetAttention(nn.Module):
    """Sums a history's events, each weighed by a network that sees the event and the target.

    w_j = MLP([t, e_j, t - e_j, t * e_j]), and the sum of w_j e_j (equation 3), where the paper leaves the
    weights as they are. `softmax` makes them add up to 1.
    """

    def __init__(self, width: int, hidden: Sequence[int], *, softmax: bool, **layers: Any) -> None:
        super().__init__()
        self.unit = perceptron(4 * width, hidden, outputs=1, **layers)
        self.softmax = softmax

    def forward(self, target: Tensor, events: Tensor, mask: Tensor, *, plain: bool = False) -> Tensor:
        """Computes the attention; see `Batch.plain`.

        Shapes: `target` [B, W], `events` [B, L, W] and `mask` [B, L] of bool in, [B, W] out.
        """
        targets = target.unsqueeze(1).expand_as(events)
        seen = torch.cat([targets, events, targets - events, targets * events], dim=2)
        weights = events.new_full(mask.shape, -torch.inf if self.softmax else 0.0)
        if plain:
            every = self.unit(seen.flatten(0, 1)).unflatten(0, mask.shape).squeeze(2)
            weights = torch.where(mask, every.to(weights.dtype), weights)
        else:
            # Only events that are there: batch statistics must not know of the padding.
            weights = weights.masked_scatter(mask, self.unit(seen[mask]).to(weights.dtype))
        if self.softmax:
            weights = torch.softmax(weights, dim=1).masked_fill(~mask, 0.0)  # NaN where there is no event
        return torch.bmm(weights.unsqueeze(1), events).squeeze(1)


class DIN(nn.Module):
    """Puts what a history says about the target beside all other inputs, below `hidden` layers.

    attend: the histories, each a table with `targets` and `histories`, as many names of features: the vectors
    of an event's features side by side are compared with those of the target. By default every sequence
    attends to the one pooled feature that shares its table.
    attention: widths of the attention's hidden layers, with `attention_activation` and `attention_dropout`.

    Other sequences count with their mean. Sequences are padded or jagged.
    """

    def __init__(
        self,
        inputs: Inputs,
        hidden: Sequence[int] = (200, 80),
        attend: Attend | None = None,
        attention: Sequence[int] = (36,),
        attention_activation: str = "dice",
        attention_dropout: float = 0.0,
        softmax: bool = False,
        activation: str = "dice",
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        layers = layer_options("din", activation, dropout, batch_norm)
        inner = layer_options("din", attention_activation, attention_dropout, named="attention_dropout")
        check_flag("din", "softmax", softmax)
        self.inputs = inputs
        self.pairs = pairs_of("din", inputs, attend)
        inside = widths("din", "attention", attention)
        dims = inputs.dims
        self.attentions = nn.ModuleList(
            TargetAttention(
                sum(dims[name] for name in histories),
                inside,
                softmax=softmax,
                **inner,
            )
            for _, histories in self.pairs
        )
        attended = [name for _, histories in self.pairs for name in histories]  # one may do so twice
        self.others = tuple(name for name in inputs.unpooled if name not in attended)
        self.layers = perceptron(
            inputs.num_dense + inputs.pooled_width + sum(dims[name] for name in (*attended, *self.others)),
            widths("din", "hidden", hidden),
            outputs=inputs.num_outputs,
            **layers,
        )

    def forward(self, batch: Batch) -> Tensor:
        """Logits [B, outputs].

        Raises UserError for histories of one event stream that differ in length.
        """
        parts = [batch.dense] if self.inputs.num_dense else []
        parts += [batch.concatenated(self.inputs.pooled)] if self.inputs.pooled else []
        for (targets, histories), attention in zip(self.pairs, self.attentions, strict=True):
            target = torch.cat([batch.pooled[name] for name in targets], dim=1).float()
            values, masks = zip(*(padded(batch, name) for name in histories), strict=True)
            if not batch.plain and any(
                mask.shape != masks[0].shape or not torch.equal(mask, masks[0]) for mask in masks[1:]
            ):
                raise unequal("din", histories)
            parts.append(attention(target, torch.cat(values, dim=2), masks[0], plain=batch.plain))
        parts += [masked_mean(*padded(batch, name)) for name in self.others]
        logits: Tensor = self.layers(side_by_side(parts))
        return logits

"""SASRec (Kang and McAuley, "Self-attentive sequential recommendation", ICDM 2018, arXiv 1808.09781).

N events of B samples, W width of an event.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from persia_hpc.trainer.batch import Batch, Inputs
from persia_hpc.trainer.jagged import Jagged

from .attention import softmax_attention
from .histories import Attend
from .parts import check_count, layer_options
from .sequence_model import SequenceModel


class Block(nn.Module):
    """Attends to earlier events, then passes each event through two layers as wide as it is.

    x + dropout(attention(LN x)), and then x + dropout(FFN(LN x)) with FFN(x) = ReLU(x W1 + b1) W2 + b2
    (section III). Attention weights are dropped too, as by the authors.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.attention = softmax_attention
        self.attention_norm = nn.LayerNorm(width, eps=1e-8)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.norm = nn.LayerNorm(width, eps=1e-8)
        self.feed = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, width)
        )
        self.drop = nn.Dropout(dropout)

    def forward(self, events: Jagged) -> Jagged:
        """Computes the block; values [N, W] in and out."""
        x = events.values
        q, k, v = self.qkv(self.attention_norm(x)).unflatten(1, (3, self.heads, -1)).unbind(1)
        dropout = self.dropout if self.training else 0.0
        x = x + self.drop(self.attention(events, q, k, v, dropout=dropout).flatten(1))
        return events.with_values(x + self.drop(self.feed(self.norm(x))))

    def hide_from_compiler(self) -> None:
        """Keeps attention, whose shapes change, out of torch.compile."""
        self.attention = torch.compiler.disable(softmax_attention)  # type: ignore[no-untyped-call]


class SASRec(SequenceModel):
    """Reads a history by self-attention, and says what comes next by its last state.

    Each event, times the root of its width, has a learned vector of its position added, counted from the
    oldest event that is kept; `layers` blocks and a layer norm follow, as in the authors' code.
    """

    def __init__(
        self,
        inputs: Inputs,
        attend: Attend | None = None,
        layers: int = 2,
        heads: int = 1,
        normalize: bool = True,
        hidden: Sequence[int] | None = None,
        activation: str = "relu",
        dropout: float = 0.2,
        batch_norm: bool = False,
    ) -> None:
        options = layer_options("sasrec", activation, dropout, batch_norm)
        super().__init__("sasrec", inputs, attend, hidden, normalize=normalize, **options)
        check_count("sasrec", "layers", layers)
        check_count("sasrec", "heads", heads, divides=self.width)
        self.positions = nn.Parameter(torch.randn(self.max_length, self.width) / math.sqrt(self.width))
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(self.width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(self.width, eps=1e-8)

    def states(self, batch: Batch, events: Jagged) -> Jagged:
        """Returns what the model knows of the user after each event, values [N, W]."""
        x: Tensor = events.values * math.sqrt(self.width) + self.positions[events.positions()]
        events = events.with_values(self.drop(x))
        for block in self.blocks:
            events = block(events)
        return events.with_values(self.norm(events.values))

"""HSTU (Zhai et al., "Actions speak louder than words", ICML 2024, arXiv 2402.17152).

N tokens of B samples, W width of an event, H heads, D dim of a head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from persia_hpc.errors import UserError
from persia_hpc.trainer.batch import Batch, Inputs
from persia_hpc.trainer.jagged import Jagged

from .attention import TIME_BUCKETS, Bias, silu_attention
from .histories import Attend, joined, last_of, one_each, unequal
from .layers import Team
from .parts import check_count, layer_options
from .sequence_model import SequenceModel

FORMS = ("paper", "dlrm_v4")
TIME_VECTORS = 2049  # of dlrm_v4, one for each whole root of minutes


class Layer(nn.Module):
    """Computes X + output(U * LN(attention)) for U, V, Q, K of a linear layer on LN X.

    "paper" is what the authors' experiments have: SiLU on all four, norms without weights, and biases of the
    distances in positions and time. "dlrm_v4" is MLPerf's: SiLU on U only, q·k divided by the root of D,
    norms with weights, and output of U, the attention and their product side by side.
    """

    def __init__(
        self, width: int, heads: int, head_dim: int, dropout: float, *, form: str, length: int, timed: bool
    ) -> None:
        super().__init__()
        self.paper, self.heads = form == "paper", heads
        self.attention = silu_attention
        inner = heads * head_dim
        self.scale = 1.0 if self.paper else head_dim**-0.5
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=not self.paper)
        self.uvqk = nn.Linear(width, 4 * inner, bias=not self.paper)
        self.attention_norm = nn.LayerNorm(inner, eps=1e-6, elementwise_affine=not self.paper)
        self.drop = nn.Dropout(dropout)
        self.output = nn.Linear(inner if self.paper else 3 * inner, width, bias=self.paper)
        nn.init.xavier_uniform_(self.output.weight)
        self.positions: nn.Parameter | None = None
        self.times: nn.Parameter | None = None
        if self.paper:
            nn.init.normal_(self.uvqk.weight, std=0.02)
            self.positions = nn.Parameter(0.02 * torch.randn(length))
            self.times = nn.Parameter(0.02 * torch.randn(TIME_BUCKETS)) if timed else None
        else:
            nn.init.xavier_uniform_(self.uvqk.weight)

    def forward(self, tokens: Jagged, divisor: float, bias: Bias, team: Team) -> Jagged:
        """Computes the layer; values [N, W] in and out."""
        normed = self.norm(tokens.values)
        inner = self.uvqk.out_features // 4
        parts = [inner, 3 * inner]
        weights = torch.split(self.uvqk.weight, parts)
        biases = (None, None) if self.uvqk.bias is None else torch.split(self.uvqk.bias, parts)
        # Apart, so that the attention's inputs lie together.
        u, vqk = (functional.linear(normed, w, b) for w, b in zip(weights, biases, strict=True))
        u = functional.silu(u)
        if self.paper:
            vqk = functional.silu(vqk)
            bias = replace(bias, positions=self.positions, times=self.times)
        seen = self.attention(
            tokens,
            vqk.unflatten(1, (3, self.heads, -1)),  # type: ignore[no-untyped-call]
            scale=self.scale,
            divisor=divisor,
            bias=bias,
            team=team,
        ).flatten(1)
        made = u * self.attention_norm(seen)
        made = made if self.paper else torch.cat([u, seen, made], dim=1)
        return tokens.with_values(tokens.values + self.output(self.drop(made)))

    def hide_from_compiler(self) -> None:
        """Keeps attention, native code and shapes that change, out of torch.compile."""
        self.attention = torch.compiler.disable(silu_attention)  # type: ignore[no-untyped-call]


class HSTU(SequenceModel):
    """Reads a history by `layers` of attention whose weights are SiLU(score) / divisor instead of a softmax.

    Without layers above (`hidden`) the last state is the user's vector, and next items are learned at every
    event; with them the target is the last token, which sees the history, and a learned vector stands for
    those features that only the history has.

    form: "paper" or "dlrm_v4", see `Layer`. width: W, to which a linear layer brings the vectors of an
    event's features; without it W is theirs, side by side. head_dim: W / heads by default. times: the history
    whose weights are the seconds since the event before. divisor: by default the most tokens that a sample
    may have, and in dlrm_v4 those of the longest sample of the batch. context: pooled features that become
    tokens in front of the history, each through a layer of its own.
    """

    def __init__(
        self,
        inputs: Inputs,
        attend: Attend | None = None,
        layers: int = 2,
        heads: int = 1,
        width: int | None = None,
        head_dim: int | None = None,
        form: str = "paper",
        times: str | None = None,
        divisor: int | None = None,
        context: Sequence[str] = (),
        normalize: bool = True,
        hidden: Sequence[int] | None = None,
        activation: str = "relu",
        dropout: float = 0.2,
        batch_norm: bool = False,
    ) -> None:
        options = layer_options("hstu", activation, dropout, batch_norm)
        super().__init__("hstu", inputs, attend, hidden, normalize=normalize, width=width, **options)
        self._check(form, times, context)
        check_count("hstu", "layers", layers)
        check_count("hstu", "heads", heads, divides=self.width if head_dim is None else None)
        for option, value in (("head_dim", head_dim), ("divisor", divisor)):
            if value is not None:
                check_count("hstu", option, value)
        self.form, self.times, self.divisor = form, times, divisor
        self.context = tuple(context)
        self.to_token: nn.Module = nn.Identity()
        if width is not None:
            self.to_token = nn.Linear(self.event_width, width)
        self.context_layers = nn.ModuleList(nn.Linear(inputs.dims[name], self.width) for name in context)
        self.length = self.max_length + len(self.context) + (self.layers is not None)
        self.positions = nn.Parameter(torch.randn(self.length, self.width) / math.sqrt(self.width))
        self.time_vectors: nn.Parameter | None = None
        if times is not None and form == "dlrm_v4":
            self.time_vectors = nn.Parameter(torch.randn(TIME_VECTORS, self.width) / math.sqrt(self.width))
        self.unknown: nn.Parameter | None = None  # of a target
        if self.layers is not None and self.event_width > self.item_width:
            self.unknown = nn.Parameter(0.1 * torch.randn(self.event_width - self.item_width))
        self.drop = nn.Dropout(dropout)
        self.team = Team()
        self.blocks = nn.ModuleList(
            Layer(
                self.width,
                heads,
                head_dim or self.width // heads,
                dropout,
                form=form,
                length=self.length,
                timed=times is not None,
            )
            for _ in range(layers)
        )

    def forward(self, batch: Batch) -> Tensor:
        """Logits [B, outputs], or scores [B, 1] without layers above."""
        if self.layers is None:
            return super().forward(batch)
        target = self.target(batch)
        if self.unknown is not None:
            target = torch.cat([target, self.unknown.expand(target.shape[0], -1)], dim=1)
        tokens = joined([self.events(batch), one_each(target[:, None])])
        return self.logits(batch, self.to_item(last_of(self.states(batch, tokens))))

    def states(self, batch: Batch, events: Jagged) -> Jagged:
        """Returns what the model knows of the user after each event, values [N, W]."""
        clock, context = self._clock(batch, events), len(self.context)
        events = events.with_values(self.to_token(events.values))
        tokens = joined([self._context(batch), events]) if context else events
        places = tokens.positions()
        if self.form == "dlrm_v4":  # counted from the last token; behind the oldest event's lie the context's
            from_end = tokens.lengths[tokens.samples()] - 1 - places
            places = torch.where(places < context, self.length - context + places, from_end)
        x = tokens.values * math.sqrt(self.width) + self.positions[places]
        bias = Bias()
        if clock is not None and self.time_vectors is not None:
            minutes = clock.values.neg().clamp(min=1e-6) / 60
            x = x + self.time_vectors[minutes.sqrt().long().clamp(max=TIME_VECTORS - 1)]
        elif clock is not None:
            last = clock.positions() == (clock.lengths - 1)[clock.samples()]
            # nothing is known of what comes after it
            until = torch.where(last, clock.values, clock.values.roll(-1))
            bias = Bias(until=until, since=clock.values)
        longest = tokens.lengths.max() if batch.plain else tokens.longest
        divisor = self.divisor or (self.length if self.form == "paper" else longest)
        tokens = tokens.with_values(self.drop(x))
        for block in self.blocks:
            tokens = block(tokens, divisor * 1.0, bias, self.team)
        if context:
            numbers = torch.arange(events.values.shape[0], device=events.offsets.device)
            return events.with_values(tokens.values[numbers + context * (events.samples() + 1)])
        return tokens

    def _context(self, batch: Batch) -> Jagged:
        """Returns the tokens in front of each history."""
        layers = zip(self.context, self.context_layers, strict=True)
        return one_each(torch.stack([layer(batch.pooled[name].float()) for name, layer in layers], dim=1))

    def _clock(self, batch: Batch, events: Jagged) -> Jagged | None:
        """Returns the time of each token in seconds, float64, before that of the last event: it is at most 0.

        A target has the time of the last event, and the context that of the first.

        Raises UserError for times of another number of events.
        """
        if self.times is None:
            return None
        history, weights = batch.jagged[self.times], batch.jagged[self.times].weights
        assert weights is not None
        parts = [history.with_values(weights.double())]
        if self.layers is not None:
            parts.append(one_each(parts[0].values.new_zeros(history.num_samples, 1)))
        gaps = joined(parts) if len(parts) > 1 else parts[0]
        if not gaps.lies_like(events):
            raise unequal(self.model, [*self.histories, self.times])
        clock, oldest = gaps, gaps.values.new_zeros(gaps.num_samples)
        if gaps.values.shape[0]:
            since = gaps.values.cumsum(dim=0)
            clock = gaps.with_values(since - since[gaps.lasts()][gaps.samples()])
            first = clock.values[clock.firsts().clamp(max=clock.values.shape[0] - 1)]
            oldest = torch.where(clock.lengths > 0, first, oldest)
        if self.context:
            clock = joined([one_each(oldest[:, None].expand(-1, len(self.context))), clock])
        return clock

    def _check(self, form: str, times: str | None, context: Sequence[str]) -> None:
        """Checks options.

        Raises UserError, which names the model and the option, if one is wrong.
        """
        if form not in FORMS:
            raise UserError(f"model 'hstu': form must be one of {', '.join(FORMS)}, got {form!r}")
        if form == "dlrm_v4" and self.layers is None:
            raise UserError(
                "model 'hstu': form 'dlrm_v4' ranks a target and needs hidden, the widths of the layers "
                "above, such as hidden = [512]"
            )
        timed = [f.name for f in self.inputs.features if f.pooling == "jagged" and f.weighted]
        if times is not None and times not in timed:
            raise UserError(
                f"model 'hstu': times must name a jagged feature with weights, the seconds since the event "
                f"before, got {times!r}; there are: {', '.join(timed) or 'none'}"
            )
        names = isinstance(context, list | tuple)
        if not names or not all(name in self.inputs.pooled for name in context):
            raise UserError(
                f"model 'hstu': context must be a list of pooled features, got {context!r}; there are: "
                f"{', '.join(self.inputs.pooled) or 'none'}"
            )
        known = [name for name in context if name in self.targets]
        if known and self.layers is None:
            raise UserError(
                f"model 'hstu': context names the target {known[0]!r}: a query that knows its item would "
                "find it in any catalogue; leave it out"
            )

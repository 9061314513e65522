"""Defines sequences without padding: the vectors of all ids of a batch, and where each sample's lie.

B samples, N ids of all of them, L longest sequence, D dim.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from persia_hpc.errors import UserError


@dataclass(frozen=True)
class Jagged:
    """Holds a feature's vectors, one for each id: sample b has `values[offsets[b]:offsets[b + 1]]`.

    Features of one [sequences.NAME] have the very same tensor of offsets. `longest` is a number on the host,
    so that asking for it doesn't wait for a GPU; it is 1 where no sample has an id. `weights` are those of
    the ids, as they are in the dataset, or None; the values aren't multiplied by them.

    Shapes: values float32 [N, D]; offsets int64 [B+1], rising from 0 to N; weights float32 [N].
    """

    values: Tensor
    offsets: Tensor
    longest: int
    weights: Tensor | None = None

    @property
    def num_samples(self) -> int:
        """Returns the number of samples, B."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Tensor:
        """Returns the number of ids of each sample, int64 [B]."""
        return self.offsets.diff()

    def with_values(self, values: Tensor) -> Jagged:
        """Returns other values at the same offsets, such as what a layer made of these.

        Shapes: values [N, ...].
        Raises UserError for another number of them.
        """
        if len(values) != len(self.values):
            raise UserError(f"got {len(values)} values, expected one for each of the {len(self.values)} ids")
        return replace(self, values=values)

    def samples(self) -> Tensor:
        """Returns the sample of each value, int64 [N]."""
        numbers = torch.arange(self.num_samples, device=self.offsets.device)
        return numbers.repeat_interleave(self.lengths, output_size=len(self.values))

    def positions(self) -> Tensor:
        """Returns the place of each value in its sample, from 0, int64 [N]."""
        numbers = torch.arange(len(self.values), device=self.offsets.device)
        return numbers - self.offsets[self.samples()]

    def firsts(self) -> Tensor:
        """Returns the place of each sample's first value among all, int64 [B]; where there is none, any."""
        return self.offsets[:-1]

    def lasts(self) -> Tensor:
        """Returns the place of each sample's last value among all, int64 [B]; where there is none, any."""
        return self.offsets[1:] - 1

    def lies_like(self, other: Jagged) -> bool:
        """Returns whether samples have as many values as in the other."""
        return self.offsets is other.offsets or torch.equal(self.offsets, other.offsets)

    def taken(self, samples: Tensor) -> tuple[Jagged, Tensor]:
        """Returns some samples, without values, and where the values of these lie here, int64 [n].

        Shapes: samples int64 [b], in any order; the result has values [n, 0].
        """
        lengths = self.lengths[samples]
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        longest = max(1, int(lengths.max())) if len(lengths) else 1
        block = Jagged(self.values.new_empty(int(offsets[-1]), 0), offsets, longest)
        return block, self.offsets[samples][block.samples()] + block.positions()

    def mask(self, length: int | None = None) -> Tensor:
        """Returns where `padded` has values, bool [B, length]."""
        places = torch.arange(self._length(length), device=self.offsets.device)
        return places < self.lengths[:, None]

    def padded(self, length: int | None = None) -> Tensor:
        """Returns the values left-aligned, with zeros behind the last of each sample.

        length: `longest` by default; a fixed one, such as the feature's max_length, keeps shapes fixed.

        Shapes: values [N, ...] give [B, length, ...].
        Raises UserError for a length below the longest.
        """
        length = self._length(length)
        rows = self.values.new_zeros(self.num_samples * length, *self.values.shape[1:])
        rows.index_copy_(0, self._places(length), self.values)
        return rows.view(self.num_samples, length, *self.values.shape[1:])

    def unpadded(self, padded: Tensor) -> Jagged:
        """Returns, of a tensor that lies like `padded`, what isn't padding, at these offsets.

        Shapes: padded [B, length, ...]; the values are [N, ...].
        Raises UserError for a length below the longest.
        """
        places = self._places(self._length(padded.shape[1]))
        return self.with_values(padded.flatten(0, 1).index_select(0, places))

    def mean(self) -> Tensor:
        """Returns the mean of each sample's values, in fp32 at least; zeros where there are none.

        Shapes: values [N, D] give [B, D].
        """
        dtype = torch.promote_types(self.values.dtype, torch.float32)
        if not len(self.values):  # torch wants at least one
            return self.values.sum(dim=0, dtype=dtype).expand(self.num_samples, -1)
        total = torch.segment_reduce(
            self.values.to(dtype), "sum", offsets=self.offsets, axis=0, initial=0, unsafe=True
        )
        return total / self.lengths.clamp(min=1).to(dtype)[:, None]

    def _length(self, length: int | None) -> int:
        if length is not None and length < self.longest:
            raise UserError(f"got length {length}, expected at least that of the longest, {self.longest}")
        return self.longest if length is None else length

    def _places(self, length: int) -> Tensor:
        return self.samples() * length + self.positions()


@dataclass(frozen=True)
class Padded(Jagged):
    """Is a `Jagged` whose values have padding between the samples, for graphs that are exported.

    Such a graph knows no number of ids, only the shape [B, L] of `filled`, where there are values. A model
    that keeps to the methods, and treats each value by itself, needn't know; `offsets` are those of samples
    of L values each.

    Shapes: values [B L, ...]; weights [B L], zeros in the padding.
    """

    filled: Tensor = field(kw_only=True)

    @classmethod
    def of(cls, values: Tensor, filled: Tensor, weights: Tensor | None = None) -> Padded:
        """Returns what padded values [B, L, ...] are, with weights [B, L]; zeros where nothing is filled."""
        count, length = filled.shape
        offsets = torch.arange(count + 1, device=filled.device) * length
        flat = None if weights is None else (weights * filled).flatten()
        return cls(values.flatten(0, 1), offsets, length, flat, filled=filled)

    @property
    def num_samples(self) -> int:
        """Returns the number of samples, B."""
        return self.filled.shape[0]

    @property
    def lengths(self) -> Tensor:
        """Returns the number of ids of each sample, int64 [B]."""
        return self.filled.sum(dim=1)

    def with_values(self, values: Tensor) -> Padded:
        """Returns other values [B L, ...] at the same places."""
        return replace(self, values=values)

    def samples(self) -> Tensor:
        """Returns the sample of each place, int64 [B L]."""
        count = torch.arange(self.filled.shape[0], device=self.filled.device)
        return count[:, None].expand(self.filled.shape).flatten()

    def positions(self) -> Tensor:
        """Returns the number of each place in its sample, int64 [B L]."""
        places = torch.arange(self.filled.shape[1], device=self.filled.device)
        return places.expand(self.filled.shape).flatten()

    def lasts(self) -> Tensor:
        """Returns the place of each sample's last value among all, int64 [B]."""
        return (self.offsets[:-1] + self.lengths - 1).clamp(min=0)

    def lies_like(self, other: Jagged) -> bool:
        """Returns True: whether samples have as many values is up to who gives a graph its inputs."""
        return True

    def mask(self, length: int | None = None) -> Tensor:
        """Returns where there are values, bool [B, L]."""
        return self.filled

    def padded(self, length: int | None = None) -> Tensor:
        """Returns the values [B, L, ...] with zeros in the padding."""
        # unflatten: view and reshape compare sizes, which a graph would hold against one sample
        values: Tensor = self.values.unflatten(0, self.filled.shape)  # type: ignore[no-untyped-call]
        shape = (*self.filled.shape, *[1] * (values.dim() - 2))
        return values.masked_fill(~self.filled.view(shape), 0)

    def unpadded(self, padded: Tensor) -> Padded:
        """Returns what lies like `padded`, at these places."""
        return self.with_values(padded.flatten(0, 1))

    def mean(self) -> Tensor:
        """Returns the mean of each sample's values, in fp32 at least; zeros where there are none."""
        dtype = torch.promote_types(self.values.dtype, torch.float32)
        total = self.padded().sum(dim=1, dtype=dtype)
        return total / self.lengths.clamp(min=1).to(dtype)[:, None]

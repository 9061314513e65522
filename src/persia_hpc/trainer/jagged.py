"""Defines sequences without padding: the vectors of all ids of a batch, and where each sample's lie.

B samples, N ids of all of them, L longest sequence, D dim.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

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

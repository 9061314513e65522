"""Provides what models of histories share: which features they compare, and their events without padding.

B samples, N events of all of them, L longest history, W width of an event: its features' dims side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from persia_hpc.errors import UserError
from persia_hpc.trainer.batch import Batch, Inputs
from persia_hpc.trainer.jagged import Jagged, Padded

Attend = Sequence[Mapping[str, Sequence[str]]]
Pair = tuple[list[str], list[str]]  # names of targets and of histories


def pairs_of(model: str, inputs: Inputs, attend: Attend | None, *, more: bool = False) -> list[Pair]:
    """Returns the names of targets and histories that are compared; `more` allows more of the latter.

    Raises UserError for what isn't such a pair, and if there is none.
    """
    example = 'attend = [{ targets = ["item"], histories = ["clicks"] }]'
    if attend is None:
        found = []
        pooled = [f for f in inputs.features if f.name in inputs.pooled]
        for sequence in (f for f in inputs.features if f.name in inputs.unpooled and f.like is None):
            same = [f.name for f in pooled if f.table == sequence.table]
            if len(same) == 1:
                found.append((same, [sequence.name]))
        if not found:
            raise UserError(
                f"model {model!r} found no sequence that shares its table with one pooled feature; give the "
                f'history pooling = "sequence" or "jagged" and the target\'s table, or write {example}'
            )
        return found
    pairs = []
    for entry in attend if isinstance(attend, list | tuple) else [attend]:
        if (
            not isinstance(entry, Mapping)
            or set(entry) != {"targets", "histories"}
            or not all(isinstance(names, list | tuple) for names in entry.values())
        ):
            raise UserError(f"model {model!r}: attend must be a list such as {example}, got {entry!r}")
        targets, histories = list(entry["targets"]), list(entry["histories"])
        for names, known, what in (
            (targets, inputs.pooled, "pooled feature"),
            (histories, inputs.unpooled, "sequence"),
        ):
            unknown = [name for name in names if name not in known]
            if unknown or not names:
                raise UserError(
                    f"model {model!r}: attend names {unknown[0]!r}, which is no {what}; there are: "
                    f"{', '.join(known) or 'none'}"
                    if unknown
                    else f"model {model!r}: attend needs at least one {what}, as in {example}"
                )
        dims = [[inputs.dims[name] for name in names] for names in (targets, histories)]
        if dims[0] != (dims[1][: len(dims[0])] if more else dims[1]):
            raise UserError(
                f"model {model!r}: attend compares {', '.join(targets)} of dims {dims[0]} with "
                f"{', '.join(histories)} of dims {dims[1]}; give them the same tables, in the same order"
            )
        pairs.append((targets, histories))
    return pairs


def padded(batch: Batch, name: str) -> tuple[Tensor, Tensor]:
    """Returns a sequence's values [B, L, D] and mask [B, L]."""
    if name in batch.sequence:
        return batch.sequence[name]
    return batch.jagged[name].padded(), batch.jagged[name].mask()


def jagged(batch: Batch, name: str) -> Jagged:
    """Returns a sequence without padding."""
    if name in batch.jagged:
        return batch.jagged[name]
    values, mask = batch.sequence[name]
    if batch.plain:
        return Padded.of(values, mask)
    ends = mask.sum(dim=1).cumsum(dim=0)
    return Jagged(values[mask], torch.cat([ends.new_zeros(1), ends]), values.shape[1])


def events_of(batch: Batch, model: str, histories: Sequence[str]) -> Jagged:
    """Returns the events of histories: the vectors of their features side by side.

    Shapes: values [N, W].
    Raises UserError for histories that differ in length.
    """
    features = [jagged(batch, name) for name in histories]
    if not all(f.lies_like(features[0]) for f in features[1:]):
        raise unequal(model, histories)
    return features[0].with_values(torch.cat([f.values for f in features], dim=1))


def unequal(model: str, histories: Sequence[str]) -> UserError:
    """Returns the error for histories of one event stream that differ in length."""
    return UserError(
        f"model {model!r}: the histories {', '.join(histories)} differ in length in a sample; expected as "
        "many ids in each, as they describe the same events"
    )


def joined(parts: Sequence[Jagged]) -> Jagged:
    """Returns the values of all parts, sample by sample, those of the first part in front.

    Shapes: values [N of the part, ...] each, [sum of these, ...] out.
    """
    if any(isinstance(part, Padded) for part in parts):
        return _joined_padded(parts)
    offsets = torch.stack([part.offsets for part in parts]).sum(dim=0)
    begins, places = offsets[:-1], []
    for part in parts:
        places.append(begins[part.samples()] + part.positions())
        begins = begins + part.lengths
    values = torch.cat([part.values for part in parts])
    values = torch.empty_like(values).index_copy(0, torch.cat(places), values)
    return Jagged(values, offsets, sum(part.longest for part in parts))


def _joined_padded(parts: Sequence[Jagged]) -> Padded:
    """Returns what `joined` does, with all padding behind the values of all parts."""
    padded = next(part for part in parts if isinstance(part, Padded))
    count = padded.filled.shape[0]
    sizes = [part.longest for part in parts]
    masks = [
        part.filled if isinstance(part, Padded) else padded.filled.new_ones(count, part.longest)
        for part in parts
    ]
    length, begin = sum(sizes), torch.zeros_like(padded.lengths)
    places = []
    for size, mask in zip(sizes, masks, strict=True):
        own = begin[:, None] + torch.arange(size, device=mask.device)
        places.append(torch.where(mask, own, length))  # padding goes behind everything, and is cut off
        begin = begin + mask.sum(dim=1)
    each = [part.values.unflatten(0, (count, -1)) for part in parts]  # type: ignore[no-untyped-call]
    values = torch.cat(each, dim=1)
    flat = values.flatten(2) if values.dim() > 2 else values.unsqueeze(2)
    index = torch.cat(places, dim=1).unsqueeze(2).expand(flat.shape)
    moved = flat.new_zeros(count, length + 1, flat.shape[2]).scatter(1, index, flat)[:, :length]
    filled = torch.arange(length, device=begin.device) < begin[:, None]
    return Padded.of(moved.reshape(values.shape), filled)


def one_each(values: Tensor) -> Jagged:
    """Returns the values of a tensor with the same number for each sample; [B, n, ...] gives [B n, ...]."""
    offsets = torch.arange(values.shape[0] + 1, device=values.device) * values.shape[1]
    return Jagged(values.flatten(0, 1), offsets, values.shape[1])


def last_of(sequences: Jagged) -> Tensor:
    """Returns the last value of each sample, zeros where there is none; [N, W] gives [B, W]."""
    if not sequences.values.shape[0]:
        return sequences.values.new_zeros(sequences.num_samples, *sequences.values.shape[1:])
    last = sequences.values[sequences.lasts().clamp(min=0)]
    return torch.where((sequences.lengths > 0)[:, None], last, torch.zeros_like(last))

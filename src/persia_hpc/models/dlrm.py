"""DLRM (Naumov et al., 2019): dot products between all pairs of vectors.

B samples, V vectors, D dim, P = V (V - 1) / 2 pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from persia_hpc.trainer.batch import Batch, Inputs

from .interaction import Interaction
from .layers import Team, has_hooks, is_native, layers_of, run_dlrm
from .parts import (
    ACTIVATIONS,
    common_dim,
    layer_options,
    perceptron,
    side_by_side,
    stacked_vectors,
    widths,
)


class DLRM(nn.Module):
    """Feeds `hidden` layers with the dense features' vector and the dot products of all pairs of vectors.

    `bottom` layers turn the dense features into that vector; a last bottom layer goes to D, the one dim that
    all features must have. Without dense features the embeddings themselves stand beside the products.

    `dropout` is that of `hidden`, `bottom_dropout` that of `bottom`. The last bottom layer has an activation
    and neither dropout nor batch normalisation, as in FuxiCTR: its vector is one among those of the features.
    """

    def __init__(
        self,
        inputs: Inputs,
        hidden: Sequence[int] = (512, 256),
        bottom: Sequence[int] = (512, 256),
        bottom_dropout: float = 0.0,
        activation: str = "relu",
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        below = layer_options("dlrm", activation, bottom_dropout, batch_norm, named="bottom_dropout")
        layers = layer_options("dlrm", activation, dropout, batch_norm)
        dim = common_dim("dlrm", inputs)
        self.inputs = inputs
        bottom = widths("dlrm", "bottom", bottom, empty=True)
        num_vectors = num_copied = len(inputs.features)
        self.bottom: nn.Sequential | None = None
        if inputs.num_dense:
            self.bottom = perceptron(inputs.num_dense, bottom, outputs=dim, **below)
            self.bottom.append(ACTIVATIONS[activation](dim))
            num_vectors, num_copied = num_vectors + 1, 1
        # The products cast them anyway; vectors that are copied too would have a sum of gradients rounded.
        self.narrow_pooled = self.bottom is not None
        self.interaction = Interaction(num_vectors, num_copied)
        self.team = Team()
        self._run_native = run_dlrm
        self.top = perceptron(
            num_copied * dim + self.interaction.num_pairs,
            widths("dlrm", "hidden", hidden),
            outputs=inputs.num_outputs,
            **layers,
        )

    def ahead(self, dense: Tensor) -> Tensor | None:
        """Computes what needs no embeddings: the dense features [B, K] through `bottom`, to [B, D].

        Returns None where the whole network is native code: on a processor whose cores servers and workers
        need to make the patch, it came later by as much as was computed meanwhile.
        """
        if self.bottom is None or self._is_native(layers_of(self.bottom), layers_of(self.top), dense):
            return None
        vector: Tensor = self.bottom(side_by_side([dense]))
        return vector

    def forward(self, batch: Batch) -> Tensor:
        """Logits [B, labels]."""
        dense = None if self.bottom is None else batch.dense
        vectors = stacked_vectors(batch, self.inputs)
        bottom = [] if self.bottom is None else layers_of(self.bottom)
        top = layers_of(self.top)
        if not batch.plain and self._is_native(bottom, top, dense, vectors):
            return self._run_native(dense, vectors, self.interaction.num_copied, bottom, top, self.team)
        direct: Tensor | None = batch.made_ahead(self)
        if direct is None and dense is not None and self.bottom is not None:
            direct = self.bottom(side_by_side([dense]))
        logits: Tensor = self.top(self.interaction(direct, vectors))
        return logits

    def _is_native(
        self,
        bottom: Sequence[nn.Module],
        top: Sequence[nn.Module],
        dense: Tensor | None,
        vectors: Tensor | None = None,
    ) -> bool:
        plain = type(self.interaction) is Interaction and not has_hooks(self.interaction)
        return plain and is_native(bottom, dense) and is_native(top, vectors)

    def hide_from_compiler(self) -> None:
        """Keeps native code, which torch can't see into, out of torch.compile.

        As a decorator that would import the compiler with this module, which takes as long as torch itself.
        """
        self._run_native = torch.compiler.disable(run_dlrm)  # type: ignore[no-untyped-call]

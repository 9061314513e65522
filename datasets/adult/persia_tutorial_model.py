"""The network of the original Persia's Adult tutorial: affine layers and batch norm, no activations."""

from itertools import pairwise

import torch
from torch import nn


class TutorialModel(nn.Module):
    """Dense -> 16 and embeddings -> 128, each with batch norm; both together -> 256 -> 128 -> 1."""

    def __init__(self, inputs, dense_width=16, embedding_width=128, hidden=(256, 128)):
        super().__init__()
        self.names = inputs.pooled
        self.dense = nn.Sequential(nn.Linear(inputs.num_dense, dense_width), nn.BatchNorm1d(dense_width))
        self.embeddings = nn.Sequential(
            nn.Linear(inputs.pooled_width, embedding_width), nn.BatchNorm1d(embedding_width)
        )
        widths = [dense_width + embedding_width, *hidden, len(inputs.labels)]
        self.top = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(widths)))

    def forward(self, batch):
        """Logits [B, 1]."""
        embeddings = torch.cat([batch.pooled[name] for name in self.names], dim=1)
        return self.top(torch.cat([self.embeddings(embeddings), self.dense(batch.dense)], dim=1))

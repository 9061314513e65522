"""Defines Criteo-Syn1 to 5 of the Persia paper (arXiv 2111.05897): Criteo's features with more ids.

The paper states the parameters of the embeddings, 6.25 to 100 trillion; rows of 128 numbers are assumed here.
"""

from __future__ import annotations

from dataclasses import dataclass

DIM = 128
FEATURES = 26
DENSE = 13
# Different values of C1 to C26 in Kaggle's training set, as DLRM's configurations for it list them.
VOCABULARY = (
    *(1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194, 27),
    *(14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572),
)
# Beside the ids of VOCABULARY seen for the first time: together about as many as in Criteo itself, 2.8 %.
NEW_IDS = 0.01


@dataclass(frozen=True)
class Preset:
    """Holds the name of a data set and the number of parameters that the paper states for its embeddings."""

    name: str
    parameters: int

    @property
    def virtual_ids(self) -> int:
        """Is the number of ids of each feature that reaches the stated number of parameters."""
        return -(-self.parameters // (FEATURES * DIM))

    def __str__(self) -> str:
        reached = FEATURES * self.virtual_ids * DIM
        return (
            f"{self.name}: {FEATURES} features x {self.virtual_ids:,} virtual ids x dim {DIM} = {reached:,} "
            f"parameters ({self.parameters / 1e12:g} trillion stated)"
        )


PRESETS = {
    preset.name: preset for preset in (Preset(f"criteo-syn{i + 1}", 6_250_000_000_000 << i) for i in range(5))
}

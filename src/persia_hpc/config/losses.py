"""Names the built-in losses, and what each takes and learns from."""

from __future__ import annotations

from typing import Any

# Losses with their options and defaults; trainer/losses.py has the formulas. None: must be written.
LOSSES: dict[str, dict[str, Any]] = {
    "bce": {"smoothing": 0.0, "pos_weight": 1.0},
    "focal": {"gamma": 2.0, "alpha": 0.25},
    "mse": {},
    "poisson": {},
    "softmax": {"classes": None, "smoothing": 0.0},
    "bpr": {},
    "in_batch_softmax": {"temperature": 1.0, "logq": "off", "halve_every": 0, "negatives": "batch"},
}
BINARY_LOSSES = ("bce", "focal", "bpr", "in_batch_softmax")  # of labels that are 0 or 1
BATCH_LOSSES = ("bpr", "in_batch_softmax")  # that compare the samples of a batch with each other
NEGATIVES = ("batch", "sampled", "both")  # of "in_batch_softmax"
LOGQ = ("off", "counts", "weights")  # of the same: where the items' shares come from

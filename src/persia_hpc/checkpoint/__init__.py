"""Saves and restores all that a run needs to continue, as of one moment (docs/checkpoints.md).

manifest.json      step, files with checksums, configuration, schema, counters
server-NNNN.h5     rows, optimizer state and recency of one server, grouped by bucket
dense.pt           dense model, optimizer, random numbers, the training loop's own state
"""

"""Measures, for `persia-hpc bench`, each part of the system beside its limit, with one module per part.

A module has SUMMARY (a line), EXAMPLES, add_arguments(parser) and measure(options), which yields a Result as
soon as each case is done.
"""

PARTS = ("table", "dedup", "reuse", "pool", "ring", "read", "gpu", "scale", "train")

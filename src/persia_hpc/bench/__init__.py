"""What `persia-hpc bench` measures, one module per part of the system, each beside its limit.

A module has SUMMARY (a line), EXAMPLES, add_arguments(parser) and measure(options), which yields a Result as
soon as each case is done.
"""

PARTS = ("table", "dedup", "reuse", "pool", "ring", "read", "gpu", "train")

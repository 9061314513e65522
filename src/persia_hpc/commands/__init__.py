"""The commands of `persia-hpc`, one module each: `add_arguments(parser)` and `run(options) -> exit code`."""

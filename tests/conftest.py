"""Sets what holds for all tests."""

from hypothesis import settings

# Of an example that takes long nothing follows but that the machine is busy.
settings.register_profile("persia_hpc", deadline=None)
settings.load_profile("persia_hpc")

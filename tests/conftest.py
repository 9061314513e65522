"""Sets what holds for all tests."""

import pytest
from hypothesis import settings

# Of an example that takes long nothing follows but that the machine is busy.
settings.register_profile("persia_hpc", deadline=None)
settings.load_profile("persia_hpc")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is None:
        return
    import torch

    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def programs() -> Path:
    """Folder of the programs that run under mpiexec."""
    return Path(__file__).with_name("programs")

"""The number formats in which rows and gradients travel."""

from __future__ import annotations

from typing import Any

import numpy as np

WIRE_DTYPES: dict[str, np.dtype[Any]] = {"fp32": np.dtype(np.float32), "fp16": np.dtype(np.float16)}

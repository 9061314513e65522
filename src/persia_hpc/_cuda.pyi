"""Types of the CUDA extension, which is there if set-up found nvcc; its documentation is in the module."""

from ._native import pool_batch_backward as pool_batch_backward
from ._native import pool_batch_forward as pool_batch_forward

cuda_version: int  # that it was built with, as CUDART_VERSION

def problem(device: int) -> str: ...

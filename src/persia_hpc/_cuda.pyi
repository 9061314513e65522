"""CUDA kernels, in a module that is there if set-up found nvcc. Numbers that are named after an array are its
address on the device; nothing is checked. See native/include/persia/pool_batch.h.
"""

cuda_version: int  # that it was built with, as CUDART_VERSION

def problem(device: int) -> str:
    """Why the kernels can't run on a device; "" if they can."""

def pool_batch_forward(
    *,
    features: int,
    num_features: int,
    num_samples: int,
    indices: int,
    narrow: bool,
    samples: int,
    flags: int,
    most_threads: int,
    stream: int,
) -> None:
    """Rows and indices -> pooled vectors and sequences, of all features; asynchronous. RuntimeError by CUDA.

    most_threads: the largest product, over features, of samples, length and quads.
    """

def pool_batch_backward(
    *,
    features: int,
    groups: int,
    num_groups: int,
    samples: int,
    row_offsets: int,
    positions: int,
    factor: int,
    long_rows: int,
    flags: int,
    most_threads: int,
    stream: int,
) -> None:
    """Gradients of the outputs -> those of the unique rows, as they travel; asynchronous. RuntimeError.

    most_threads: the largest product, over groups, of rows and the threads that share one (at most 32).
    `flags` are zero before.
    """

"""What training on a CPU asks of the C library; d2v/training/setup.py chooses it in one line, of open_accelerator."""

import ctypes

# mallopt's parameters, from glibc's malloc.h
TRIM_THRESHOLD, MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Freed blocks stay with the process for the next step.

    glibc would return the large ones and fetch them anew page by page: 5 to 14 % of a step of MoCo on ResNet-18 with
    four images. False: another C library, in which nothing is changed.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl and macOS; Windows
        return False
    return bool(mallopt(TRIM_THRESHOLD, 2**31 - 1) and mallopt(MMAP_MAX, 0))

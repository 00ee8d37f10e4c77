"""Freed memory stays with the process: the same work comes to fetch no pages."""

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import os, resource, runpy, sys, torch
keep_freed_memory = runpy.run_path(sys.argv[1])["keep_freed_memory"]  # without the package, whose import takes seconds
if (child := os.fork()) == 0:
    assert keep_freed_memory()
else:
    assert os.waitpid(child, 0)[1] == 0
def step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(5_000_000) for _ in range(4)]
    del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print([step() for _ in range(20)][-1], flush=True)  # the first ones find their places
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_steps_fetch_no_pages_in_the_end(root):
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"}  # else glibc may come to keep them by itself
    command = [sys.executable, "-c", FAULTS, str(root / "d2v" / "training" / "memory.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    kept, left = map(int, done.stdout.split())
    assert kept < 100 < 1000 < left

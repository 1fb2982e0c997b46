"""Shared by all tests: no display, a fixed profile for hypothesis, the machine's own threads."""
import os
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("TQDM_DISABLE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")     # tests side by side share the cores

import pytest
from hypothesis import settings

ROOT = Path(__file__).parent.parent
settings.register_profile("project", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("project")


@pytest.fixture
def root(): return ROOT

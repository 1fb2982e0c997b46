"""Shared by all tests: no display, a fixed profile for hypothesis, the machine's own number of threads."""
import os
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("TQDM_DISABLE", "1")

import pytest
from hypothesis import settings

ROOT = Path(__file__).parent.parent
settings.register_profile("project", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("project")


@pytest.fixture
def root(): return ROOT

"""Every kernel test leaves the machine as it found it."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _leaves_nothing(leaves_nothing: None) -> None:
    """Counts before and after each test."""


@pytest.fixture(autouse=True, scope="module")
def _module_leaves_nothing(module_leaves_nothing: None) -> None:
    """Counts before and after each module's shared fixtures."""

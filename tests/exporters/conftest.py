"""What the tests of exporters share."""

from __future__ import annotations

import pytest

from streamrnn.importers.original import trial


@pytest.fixture
def few_steps(monkeypatch):
    """Prove over fewer steps: the reference runs ten times. `test_page` proves over all."""
    monkeypatch.setattr(trial, "_NUM_STEPS", 50)

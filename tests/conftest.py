"""What every test shares."""

import pytest
import torch
from hypothesis import settings

# A first call warms up libraries, and a machine may be busy: time is not what fails a test.
settings.register_profile("without deadline", deadline=None)
settings.load_profile("without deadline")


@pytest.fixture(autouse=True)
def _fixed_seed():
    """Tests that draw from torch's global generator draw the same numbers every time."""
    torch.manual_seed(0)

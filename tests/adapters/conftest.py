"""What the modules that break a broker of their own have in common."""

import pytest


@pytest.fixture
def world(own_world):
    """Two partitions on a broker of the module's own; a module may have another one."""
    return own_world

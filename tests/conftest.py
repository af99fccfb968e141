"""What all tests share: backends present, the demo model, the hypothesis profiles.

With CI in the environment hypothesis tries more examples; the examples are the same every time
either way, so that a failure repeats.
"""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile(
    "dev", derandomize=True, deadline=None, database=None, max_examples=100
)
hypothesis.settings.register_profile(
    "ci", derandomize=True, deadline=None, database=None, max_examples=1000
)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "dev")


@pytest.fixture(scope="session")
def backends() -> list[str]:
    """Names of the backends this machine can run, such as ["ref", "cpu:scalar", "cpu:avx2"]."""
    from mmengine import _testing_kernels

    return list(_testing_kernels.backends())


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Engine directory of the demo model; fetched when missing, unless MMENGINE_OFFLINE is set."""
    from mmengine import cache, errors

    try:
        return Path(cache.resolve_model("smollm2"))
    except errors.ModelNotFoundError as error:
        if os.environ.get("MMENGINE_OFFLINE"):
            pytest.skip(f"the demo model is not in the cache, and MMENGINE_OFFLINE is set: {error}")
        raise

"""Property tests here repeat exactly and do not depend on how busy the machine is."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("data", deadline=None, derandomize=True)
settings.load_profile("data")

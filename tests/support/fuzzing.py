"""How long tests with random input run: briefly and always alike in the suite, at length in `make fuzz`."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
"""Number of random inputs of each test in `make fuzz`; 0 in the suite, where each test has its own number."""


def fuzzed(examples: int) -> settings:
    """Return the settings of a test with `examples` inputs, which are the same in every run of the suite."""
    return settings(
        max_examples=EXAMPLES or examples,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )

"""Random numbers that depend only on their purpose, never on earlier draws."""

from __future__ import annotations

import numpy as np
import torch


def generator(*key: int) -> torch.Generator:
    """Return a CPU generator that is seeded by the non-negative integers `key`, such as (seed, epoch).

    torch seeds its CPU generator from 32 bits only, so the key is hashed rather than packed into one number.
    """
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))

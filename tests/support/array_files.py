"""Array files in the IDX format, as tests need them."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

IDX_CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx(values: np.ndarray[Any, Any]) -> bytes:
    """Return the content of an IDX file with `values`."""
    code = IDX_CODES[values.dtype.str[1:]]
    header = bytes([0, 0, code, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return header + values.astype(values.dtype.newbyteorder(">")).tobytes()

"""Tables of addresses: their formats, encodings and columns."""

"""Tars and ZIP archives, whose members are read where they lie."""

"""Mosaics, strips, animations and thumbnails."""

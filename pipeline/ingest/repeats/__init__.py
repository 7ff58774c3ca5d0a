"""Deduplication: files with the same bytes, and images that look the same."""

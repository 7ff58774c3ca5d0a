"""Folders that scrapers have written: images, and files with their metadata."""

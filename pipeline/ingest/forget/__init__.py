"""Takedown: the list of images that a collection must forget, and their removal from crawls."""

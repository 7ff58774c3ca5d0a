"""Takedown: the list of forgotten images, and their removal from crawls."""

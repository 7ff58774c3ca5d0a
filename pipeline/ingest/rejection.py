"""Why a record of a crawl does not become an image."""

from __future__ import annotations

from typing import Literal

RejectReason = Literal[
    "missing_file",  # the crawl names a file that is not there
    "outside_source",  # a link or an address that leaves the source: a crawl may not pick files of the machine
    "unreadable",  # the file or folder is there and cannot be read
    "empty",  # zero bytes
    "too_many_bytes",  # more than `max_bytes`
    "not_an_image",  # nothing that Pillow reads: a login page, a text, a drawing
    "video",
    "profile_picture",  # of an account that a crawl names, not one of its posts
    "no_address",  # a row of a table without an http:// or https:// address
    "broken_metadata",  # a row of a table, or a file of metadata, that cannot be parsed
    "too_many_pixels",  # the header claims more than `max_pixels`, as decompression bombs do
    "too_small",  # the short side is below `min_side`
    "truncated",  # an image that ends too early
    "corrupt",  # an image with broken content
    "duplicate",  # the same bytes are kept elsewhere in the collection
    "near_duplicate",  # looks like an image that is kept: a repost, resized or recompressed
    "bad_url",  # no address that can be asked for, or a redirect to one
    "unknown_host",  # the name service knows no such name
    "private_address",  # outside the public internet: a crawl may not reach into the cluster's network
    "tls_error",  # a certificate that does not hold, or no common cipher
    "too_many_redirects",
    "http_error",  # the server says no for good; the detail has the status
    "robots_opt_out",  # X-Robots-Tag
    "unreachable",  # a fault that may pass, in all attempts of all rounds
    "forgotten",  # somebody asked for it; the row says nothing else
]
"""Values of the column ``reason`` of rejected rows, and of the column ``problem`` of the plan."""


class Rejected(Exception):  # noqa: N818 (an expected outcome of a record, not an error of the job)
    """One record is not ingested; the crawl goes on."""

    def __init__(self, reason: RejectReason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason: RejectReason = reason
        self.detail = detail
        """The reason in words, with the values that decided."""


class TemporaryFailure(Exception):  # noqa: N818 (as above)
    """One attempt to reach a record failed for a reason that may pass."""

    def __init__(self, detail: str, retry_after_s: float | None = None, host_is_busy: bool = False) -> None:
        super().__init__(detail)
        self.detail = detail
        """The reason in words."""
        self.retry_after_s = retry_after_s
        """Seconds that the server wants to be left alone, if it said so."""
        self.host_is_busy = host_is_busy
        """Whether this holds for the whole host rather than for one address."""

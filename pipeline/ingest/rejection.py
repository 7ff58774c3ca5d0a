"""The reasons for which a record of a crawl is rejected instead of becoming an image."""

from __future__ import annotations

from typing import Literal

RejectReason = Literal[
    # Files
    "missing_file",  # the crawl lists this file, but the file does not exist
    "outside_source",  # a link or a table row leads out of the source; crawls must not select files of the machine
    "unreadable",  # the file or folder exists but cannot be read
    "empty",  # the file has zero bytes
    "too_many_bytes",  # the file or the download is larger than `max_bytes`
    # Posts, and rows of tables
    "video",  # the record is a video
    "profile_picture",  # the profile picture of an account, not an image of a post
    "no_address",  # the table row has no http:// or https:// address
    "broken_metadata",  # the table row or the metadata file cannot be parsed
    # Decoding
    "not_an_image",  # the content is in no image format: an HTML page, text, a vector drawing
    "unsupported_format",  # the image is in a format that is not decoded, such as camera raw or JPEG XL
    "too_many_pixels",  # the header claims more than `max_pixels`, as decompression bombs do; nothing is decoded
    "too_small",  # the short side has fewer pixels than `min_side`
    "truncated",  # the image file ends too early
    "corrupt",  # the image file is damaged
    # Deduplication and takedown
    "duplicate",  # an image with the same bytes is kept, in this crawl or in an earlier one of the collection
    "near_duplicate",  # the image looks like a kept image: it is a resized or recompressed repost
    "forgotten",  # the image was removed on request (takedown); the row keeps only its position
    # Downloads
    "bad_url",  # the address, or the address that it redirects to, is not a valid http:// or https:// URL
    "unknown_host",  # the host name does not exist
    "private_address",  # the host is outside the public internet; crawls must not reach the cluster's own network
    "tls_error",  # the certificate is not valid, or no secure connection could be agreed on
    "too_many_redirects",  # the address redirects more than `max_redirects` times
    "http_error",  # the server refuses permanently; the detail has the HTTP status
    "expired",  # the address was signed for a limited time, which is over; it cannot be reached any more
    "robots_opt_out",  # the server forbids this use of the image in the header X-Robots-Tag
    "unreachable",  # all attempts of all rounds failed for reasons that may be temporary
]
"""Values of the column ``reason`` of rejected rows, and of the column ``problem`` of the plan."""


class Rejected(Exception):  # noqa: N818 (an expected outcome of a record, not an error of the job)
    """One record is rejected; the job continues with the others."""

    def __init__(self, reason: RejectReason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason: RejectReason = reason
        self.detail = detail
        """Explanation for the user, with the values that led to the rejection."""


class TemporaryFailure(Exception):  # noqa: N818 (as above)
    """One attempt to download a record failed for a reason that may be temporary."""

    def __init__(self, detail: str, retry_after_s: float | None = None, host_is_busy: bool = False) -> None:
        super().__init__(detail)
        self.detail = detail
        """Explanation for the user."""
        self.retry_after_s = retry_after_s
        """Seconds that the server asks to wait before the next request; None if it does not ask."""
        self.host_is_busy = host_is_busy
        """Whether the failure concerns the whole host rather than this address."""

"""A captured post, whatever tool captured it, and its records: one for each of its images and videos."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from pipeline.ingest.sources.file_records import NO_METADATA, file_record
from pipeline.ingest.sources.metadata import Metadata
from pipeline.ingest.sources.tables.addresses import WEB_ADDRESS, name_in
from pipeline.ingest.sources.tree import File
from pipeline.records import CrawlRecord

MAX_MEDIA = 100
"""Maximum number of images of a post; those of Instagram have up to 20."""


@dataclass(frozen=True)
class Media:
    """An image or a video of a post."""

    url: str | None
    """Address of the image, or of the video's thumbnail; None if the capture has none."""
    is_video: bool = False


@dataclass(frozen=True)
class Post:
    """A post as a tool captured it."""

    code: str
    """Short code of the post, which is the same in every capture."""
    media: list[Media] = field(default_factory=list)
    metadata: Metadata = NO_METADATA
    author: str | None = None
    """Name of the account."""
    is_advertisement: bool = False

    @property
    def is_complete(self) -> bool:
        """Whether the capture has the time and an image of the post; some captures of a post lack them."""
        return self.metadata.taken_at is not None and any(media.url for media in self.media)


@dataclass(frozen=True)
class PostOptions:
    """What a user says about posts."""

    video_thumbnails: bool = False
    """Whether the thumbnails of videos are images of the crawl."""
    author_hash: bool = False
    """Whether the records have a pseudonym of the author."""


def post_records(post: Post, file: File, number: int, options: PostOptions) -> Iterator[CrawlRecord]:
    """Yield the records of `post`, which row `number` of the table `file` describes.

    The fingerprint of an image is the short code and its position: its address changes with every capture.
    """
    metadata = replace(post.metadata, shortcode=post.code)
    if options.author_hash and post.author:
        metadata = replace(metadata, extra={**metadata.extra, "author_hash": pseudonym(post.author)})
    for position, media in enumerate(post.media[:MAX_MEDIA] or [Media(None)], start=1):
        row = File(f"{file.path}#{number}.{position}", f"{file.uri}#row={number}.{position}", None)
        own = replace(metadata, source_url=media.url)
        if media.is_video and options.video_thumbnails:
            own = replace(own, extra={**own.extra, "video_thumbnail": True})
        if media.is_video and not options.video_thumbnails:
            record = file_record(row, own, "video", "a video; its thumbnail is ingested with ingest.video_thumbnails")
        elif media.url is None or not WEB_ADDRESS.fullmatch(media.url):
            record = file_record(row, own, "no_address", "the capture has no address of this image")
        else:
            record = CrawlRecord(source_uri=media.url, file_name=name_in(media.url), **vars(own))
        yield replace(record, fingerprint=f"{post.code}/{position}")


def pseudonym(author: str) -> str:
    """Return 16 hexadecimal digits that stand for an author: the same in all crawls, but not readable."""
    return hashlib.sha256(f"author:{author}".encode()).hexdigest()[:16]

"""Small dumps of every supported layout, as bytes by path, and functions that write them to a folder or a tar."""

from __future__ import annotations

import io
import json
import lzma
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.crawl_files import encoded, photograph

Files = dict[str, bytes]


def put(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write `files` below `folder`; return `folder`."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def tar(files: Iterable[tuple[str, bytes]], mode: Any = "w", **options: Any) -> bytes:
    """Return a tar of `files`; the `mode` ``w:gz`` compresses it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, **options) as writer:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            writer.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def zipped(files: Iterable[tuple[str, bytes]]) -> bytes:
    """Return a ZIP of `files`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files:
            archive.writestr(name, data)
    return buffer.getvalue()


def parquet(columns: Mapping[str, Any], **options: Any) -> bytes:
    """Return a Parquet file of `columns`."""
    buffer = io.BytesIO()
    pq.write_table(pa.table(dict(columns)), buffer, **options)
    return buffer.getvalue()


def instaloader_node(code: str, **values: Any) -> bytes:
    """Return the ``.json.xz`` file that instaloader writes for the post `code`."""
    node = {
        "shortcode": code,
        "id": f"id of {code}",
        "__typename": "GraphImage",
        "taken_at_timestamp": 1_600_000_000,
        "is_video": False,
        "display_url": f"https://cdn.example/{code}.jpg",
        "edge_media_to_caption": {"edges": [{"node": {"text": "Fontana #Trevi"}}]},
        "edge_media_preview_like": {"count": 7},
        "owner": {"id": "9"},
        **values,
    }
    document = {"node": node, "instaloader": {"version": "4.10", "node_type": "Post"}}
    return lzma.compress(json.dumps(document).encode())


def instaloader_dump() -> Files:
    """Return a picture, a carousel with a video and a missing part, a video, and files that are not posts."""
    picture = encoded(photograph(1))
    children = [{"node": {"display_url": f"https://cdn.example/c{i}.jpg", "is_video": i == 2}} for i in (1, 2, 3)]
    carousel = instaloader_node("carousel", edge_sidecar_to_children={"edges": children})
    return {
        "#trevi/2020-09-13_12-26-40_UTC.jpg": picture,
        "#trevi/2020-09-13_12-26-40_UTC.json.xz": instaloader_node("single"),
        "#trevi/2020-09-13_12-26-40_UTC.txt": b"Fontana #Trevi",
        "#trevi/2020-09-13_12-26-40_UTC_comments.json": b"[]",
        "#trevi/2020-09-13_12-26-40_UTC_location.txt": b"Roma",
        "#trevi/2020-09-14_00-00-00_UTC.json.xz": carousel,
        "#trevi/2020-09-14_00-00-00_UTC_1.jpg": encoded(photograph(2)),
        "#trevi/2020-09-14_00-00-00_UTC_2.mp4": b"\0\0\0\x20ftypisom",
        "#trevi/2020-09-15_00-00-00_UTC.jpg": encoded(photograph(3)),
        "#trevi/2020-09-15_00-00-00_UTC.json.xz": instaloader_node("film", is_video=True),
        "#trevi/2020-09-15_00-00-00_UTC.mp4": b"\0\0\0\x20ftypisom",
        "#trevi/#trevi.json.xz": lzma.compress(b"{}"),
        "#trevi/iterator_abc.json.xz": lzma.compress(b"{}"),
        "#trevi/2020-01-01_00-00-00_UTC_profile_pic.jpg": picture,
    }


def gallery_dl_sidecar(media_id: int, **values: Any) -> bytes:
    """Return the ``.json`` file that gallery-dl writes for the media `media_id`."""
    document = {
        "category": "instagram",
        "post_shortcode": f"post{media_id}",
        "shortcode": f"media{media_id}",
        "post_id": "5",
        "date": "2020-09-13 12:26:40",
        "description": "Fontana di Trevi #Roma",
        "tags": ["#Roma"],
        "media_id": str(media_id),
        "num": 1,
        "width": 1080,
        "display_url": f"https://cdn.example/{media_id}.jpg",
        "video_url": None,
        "username": "someone",
        **values,
    }
    return json.dumps(document).encode()


def gallery_dl_dump() -> Files:
    """Return a picture, a part of a carousel, a video, a missing picture, and a picture without metadata."""
    folder = "instagram/tag/trevi"
    return {
        f"{folder}/11.jpg": encoded(photograph(1)),
        f"{folder}/11.jpg.json": gallery_dl_sidecar(11),
        f"{folder}/20_21.webp": encoded(photograph(2), "WEBP"),
        f"{folder}/20_21.webp.json": gallery_dl_sidecar(21, tags=None, description=None),
        f"{folder}/31.mp4": b"\0\0\0\x20ftypisom",
        f"{folder}/31.mp4.json": gallery_dl_sidecar(31),
        f"{folder}/41.jpg.json": gallery_dl_sidecar(41),
        f"{folder}/51.jpg": encoded(photograph(5)),
    }


def img2dataset_dump() -> Files:
    """Return a tar of two images, and a table with these images and a third one whose download failed."""
    urls = [f"https://example.org/{i}.jpg" for i in range(3)]
    members: list[tuple[str, bytes]] = []
    for i in (0, 1):
        key = f"00000000{i}"
        metadata = {"url": urls[i], "caption": f"photo {i} #Trevi", "key": key, "status": "success",
                "error_message": None, "width": 48, "original_width": 96, "exif": "{}", "sha256": "x"}  # fmt: skip
        members += [(f"{key}.jpg", encoded(photograph(i))), (f"{key}.json", json.dumps(metadata).encode()),
                    (f"{key}.txt", f"photo {i} #Trevi".encode())]  # fmt: skip
    table = {
        "url": urls,
        "caption": ["photo 0 #Trevi", "photo 1 #Trevi", "photo 2"],
        "key": [f"00000000{i}" for i in range(3)],
        "status": ["success", "success", "failed_to_download"],
        "error_message": [None, None, "HTTP Error 404: Not Found"],
    }
    return {"00000.tar": tar(members), "00000.parquet": parquet(table), "00000_stats.json": b'{"count": 3}'}


def megadepth_tree() -> Files:
    """Return two scenes of MegaDepth version 1, one of them with two models."""
    base = "phoenix/S6/zl548/MegaDepth_v1"
    return {
        f"{base}/0000/dense0/imgs/a.jpg": encoded(photograph(1)),
        f"{base}/0000/dense0/depths/a.h5": b"\x89HDF",
        f"{base}/0000/dense1/imgs/b.jpg": encoded(photograph(2)),
        f"{base}/0022/dense0/imgs/c.jpg": encoded(photograph(3)),
    }

from __future__ import annotations

from typing import Any

import pytest

from pipeline.ingest.sources.tables.addresses import address_columns, addresses_in, with_lists

IMAGE, PAGE, OTHER = "https://cdn.example/x/1.jpg?sig=a", "https://site.example/p/abc/", "https://cdn.example/photo-12"


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"url": PAGE, "image_url": IMAGE}, "image_url"),
        ({"url": PAGE, "displayUrl": OTHER, "inputUrl": PAGE, "videoUrl": IMAGE}, "displayUrl"),
        ({"photo_url": PAGE, "photo_image_url": OTHER}, "photo_image_url"),
        ({"url": IMAGE, "thumbnail_url": IMAGE}, "url"),
        ({"url": PAGE, "thumbnail_url": IMAGE}, "thumbnail_url"),
        ({"url": PAGE, "profile_pic_url": IMAGE, "ownerAvatarUrl": IMAGE}, "url"),
        ({"link": PAGE, "foo": IMAGE}, "foo"),
        ({"source_url": PAGE, "url": OTHER}, "url"),
        ({"image_link": IMAGE, "link": PAGE}, "image_link"),
        ({"url": "https://wiki.example/File:X.jpg", "image_url": "https://up.example/a/X.jpg"}, "image_url"),
        ({"image": "photo 1.jpg", "url": IMAGE}, "url"),
        ({"src": IMAGE, "alt": "x"}, "src"),
        ({"Image URL": OTHER, "Page URL": PAGE}, "Image URL"),
        ({"image_page_url": PAGE, "file": IMAGE}, "file"),
        ({"image_urls": f"{IMAGE},{IMAGE}", "url": PAGE}, "image_urls"),
        ({"images": [IMAGE], "url": PAGE}, "images"),
    ],
)
def test_the_column_of_images_is_the_one_that_holds_them(row: dict[str, Any], column: str) -> None:
    assert address_columns([row])[0] == column


def test_a_column_with_few_addresses_is_none() -> None:
    rows = [{"caption": IMAGE, "url": IMAGE}, {"caption": "a", "url": ""}, {"caption": "b", "url": PAGE}]
    assert address_columns(rows) == ["url"]
    assert address_columns([{"url": "nothing"}]) == []


@pytest.mark.parametrize(
    ("cell", "found"),
    [
        (IMAGE, [IMAGE]),
        (f" {IMAGE} ", [IMAGE]),
        ("https://cdn.example/1.jpg?stp=dst-jpg_e35,s1080", ["https://cdn.example/1.jpg?stp=dst-jpg_e35,s1080"]),
        (f"{IMAGE},{OTHER}", [IMAGE, OTHER]),
        (f"{IMAGE}, {OTHER};{PAGE}|{IMAGE}\n{PAGE}", [IMAGE, OTHER, PAGE, IMAGE, PAGE]),
        (f'["{IMAGE}", "{OTHER}"]', [IMAGE, OTHER]),
        (f"['{IMAGE}']", [IMAGE]),
        ([IMAGE, None, OTHER, 7], [IMAGE, OTHER]),
        ("//cdn.example/1.jpg", ["//cdn.example/1.jpg"]),
        (f"see {IMAGE}", []),
        ("", []),
        (None, []),
        ([[[IMAGE]]], []),
        ({"url": IMAGE, "width": 3}, [IMAGE]),
        ([{"src": IMAGE}, {"contentUrl": OTHER}, {"id": 3}], [IMAGE, OTHER]),
        ({"id": 3}, []),
    ],
)
def test_a_cell_may_hold_several_addresses(cell: Any, found: list[str]) -> None:
    assert addresses_in(cell) == found


@pytest.mark.parametrize("form", ["images/{}", "images.{}", "images[{}]"])
def test_numbered_columns_are_one_list(form: str) -> None:
    row = {"url": PAGE, **{form.format(i): f"{OTHER}/{i}" if i < 11 else "" for i in (0, 2, 10, 1, 11)}}
    assert with_lists(row) == {"url": PAGE, "images": [f"{OTHER}/{i}" for i in (0, 1, 2, 10)]}

"""MegaDepth: photographs of landmarks, one numbered folder per scene. One scene is one collection.

A scene's images are in ``dense<k>/imgs`` (version 1, below ``phoenix/S6/zl548/MegaDepth_v1``) or in ``images``
(``MegaDepth_v1_SfM``, ``Undistorted_SfM``); its depths and models are no images.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from pipeline.errors import SourceError
from pipeline.ingest.sources.folder import Walk
from pipeline.ingest.sources.tree import Folder, Tree, open_tree
from pipeline.records import CrawlRecord

ABOVE_SCENES = ("phoenix", "S6", "zl548", "MegaDepth_v1", "MegaDepth_v1_SfM", "Undistorted_SfM")
"""Folders that the archives of the data set put above the scenes."""

_SCENE = re.compile(r"\d{4}")
_DENSE = re.compile(r"dense\d+")

SHOWN_SCENES = 5


def is_scene(tree: Tree, here: Folder) -> bool:
    """Whether the folder `tree`, which holds what is `here`, has the images of one scene."""
    name = tree.root.rstrip("/").rpartition("/")[2]
    return _SCENE.fullmatch(name) is not None and bool(_image_folders(tree, here, certain=True))


def scenes_below(tree: Tree, here: Folder) -> list[str]:
    """Paths of the scenes of `tree`, which holds what is `here`; only the data set or a part of it has some.

    Only the first numbered folder of each part is looked into: listing a whole data set takes long.
    """
    scenes: list[str] = []
    folders = [here]
    while folders:
        folder = folders.pop()
        numbered = [path for path in folder.folders if _SCENE.fullmatch(_name(path))]
        if numbered and _image_folders(tree, tree.list(numbered[0]), certain=True):
            scenes += numbered
        folders += [tree.list(path) for path in folder.folders if _name(path) in ABOVE_SCENES]
    return sorted(scenes)


def scene_of(source: str) -> Tree | None:
    """The scene that `source` names, where it is written as ``tree/0000`` for a scene further below `tree`.

    Raises SourceError where several parts of the data set have that scene.
    """
    above, _, name = source.rstrip("/").rpartition("/")
    if not above or not _SCENE.fullmatch(name) or not (tree := open_tree(above)).exists() or tree.file() is not None:
        return None
    found = [path.rstrip("/") for path in scenes_below(tree, tree.list()) if _name(path) == name]
    if len(found) > 1:
        raise SourceError(f"source {source}: scene {name} is there {len(found)} times; give one of {', '.join(found)}")
    return open_tree(f"{above}/{found[0]}") if found else None


def scene_records(tree: Tree) -> Iterator[CrawlRecord]:
    """The images of the scene `tree`, with its number in ``extra``.

    Raises SourceError where `tree` is no scene, is a tree of scenes, or holds no image.
    """
    here = tree.list()
    image_folders = _image_folders(tree, here, certain=False)
    if not image_folders:
        refuse_tree(tree, scenes_below(tree, here))
        raise SourceError(f"source {tree.root}: no scene of MegaDepth; expected folders dense0/imgs or images in it")
    scene = tree.root.rstrip("/").rpartition("/")[2]
    walk = Walk(tree)
    for record in walk.records(image_folders):
        yield replace(record, extra={**record.extra, "scene": scene})
    if not walk.files:
        raise SourceError(f"source {tree.root}: the scene holds no image")


def refuse_tree(tree: Tree, scenes: list[str]) -> None:
    """Raise SourceError where there are `scenes`: each is a collection of its own."""
    if scenes:
        shown = ", ".join(_name(path) for path in scenes[:SHOWN_SCENES]) + (", …" if len(scenes) > SHOWN_SCENES else "")
        raise SourceError(
            f"source {tree.root}: MegaDepth with {len(scenes)} scenes ({shown}), and one scene is one collection; "
            f"give one of them, such as --source {tree.root}/{scenes[0].rstrip('/')}, or --source-type folder for all"
        )


def _image_folders(tree: Tree, scene: Folder, certain: bool) -> list[str]:
    """Paths in `tree` of the folders with the images of `scene`; only of what is MegaDepth's beyond doubt if `certain`.

    A numbered folder with a folder images may be anything, unless it also holds a model or lies below one of the data
    set's own names.
    """
    folders = [path for path in scene.folders if _DENSE.fullmatch(_name(path))]
    found = [inner for path in folders for inner in tree.list(path).folders if _name(inner) == "imgs"]
    names = {_name(path) for path in scene.folders}
    own = "sparse" in names or any(f"/{name}/" in f"{tree.root}/{scene.path}" for name in ABOVE_SCENES[3:])
    if "images" in names and (own or not certain):
        found.append(f"{scene.path}images/")
    return found


def _name(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]

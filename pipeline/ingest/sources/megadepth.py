"""MegaDepth: photographs of landmarks, one numbered folder per scene. Each scene is one collection.

The images of a scene are in ``dense<k>/imgs`` (version 1, below ``phoenix/S6/zl548/MegaDepth_v1``) or in ``images``
(``MegaDepth_v1_SfM``, ``Undistorted_SfM``); its depth maps and models are not images.
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
"""Names of the folders that contain the scenes in the archives of the data set."""

_SCENE = re.compile(r"\d{4}")
_DENSE = re.compile(r"dense\d+")

SHOWN_SCENES = 5
"""Maximum number of scenes that an error message names."""


def is_scene(tree: Tree, root_folder: Folder) -> bool:
    """Return whether `tree`, with the listing `root_folder`, is a folder with the images of one scene."""
    name = tree.root.rstrip("/").rpartition("/")[2]
    return _SCENE.fullmatch(name) is not None and bool(_image_folders(tree, root_folder, strict=True))


def scenes_below(tree: Tree, root_folder: Folder) -> list[str]:
    """Return the paths of the scenes in `tree`, with the listing `root_folder`; empty if it is not the data set.

    Only the first numbered folder of each part is examined, because listing a whole data set takes long.
    """
    scenes: list[str] = []
    folders = [root_folder]
    while folders:
        folder = folders.pop()
        numbered = [path for path in folder.folders if _SCENE.fullmatch(_name(path))]
        if numbered and _image_folders(tree, tree.list(numbered[0]), strict=True):
            scenes += numbered
        folders += [tree.list(path) for path in folder.folders if _name(path) in ABOVE_SCENES]
    return sorted(scenes)


def find_scene(source: str) -> Tree | None:
    """Return the scene for a `source` such as ``tree/0000``, where scene 0000 is anywhere below `tree`; None if absent.

    Raises SourceError if several parts of the data set contain the scene.
    """
    above, _, name = source.rstrip("/").rpartition("/")
    if not above or not _SCENE.fullmatch(name) or not (tree := open_tree(above)).exists() or tree.file() is not None:
        return None
    found = [path.rstrip("/") for path in scenes_below(tree, tree.list()) if _name(path) == name]
    if len(found) > 1:
        raise SourceError(f"source {source}: scene {name} exists {len(found)} times; choose one of {', '.join(found)}")
    return open_tree(f"{above}/{found[0]}") if found else None


def scene_records(tree: Tree) -> Iterator[CrawlRecord]:
    """Yield the records of the images of the scene `tree`, with the number of the scene in ``extra``.

    Raises SourceError if `tree` is not a scene, contains several scenes, or contains no images.
    """
    root_folder = tree.list()
    image_folders = _image_folders(tree, root_folder, strict=False)
    if not image_folders:
        refuse_scenes(tree, scenes_below(tree, root_folder))
        raise SourceError(f"source {tree.root}: not a scene of MegaDepth; expected a subfolder dense0/imgs or images")
    scene = tree.root.rstrip("/").rpartition("/")[2]
    walk = Walk(tree)
    for record in walk.records(image_folders):
        yield replace(record, extra={**record.extra, "scene": scene})
    if not walk.files:
        raise SourceError(f"source {tree.root}: the scene contains no images")


def refuse_scenes(tree: Tree, scenes: list[str]) -> None:
    """Raise SourceError if `tree` contains any `scenes`: each of them is a separate collection."""
    if scenes:
        names = ", ".join(_name(path) for path in scenes[:SHOWN_SCENES]) + (", …" if len(scenes) > SHOWN_SCENES else "")
        raise SourceError(
            f"source {tree.root}: contains {len(scenes)} scenes of MegaDepth ({names}), and each scene is a separate "
            f"collection; choose one of them, such as --source {tree.root}/{scenes[0].rstrip('/')}, or read all with "
            "--source-type folder"
        )


def _image_folders(tree: Tree, scene: Folder, strict: bool) -> list[str]:
    """Return the paths in `tree` of the folders with the images of `scene`.

    If `strict`, a numbered folder with a subfolder images, which may be anything, is accepted only if it also contains
    a model or is below a folder with a name of the data set.
    """
    dense_folders = [path for path in scene.folders if _DENSE.fullmatch(_name(path))]
    found = [inner for path in dense_folders for inner in tree.list(path).folders if _name(inner) == "imgs"]
    names = {_name(path) for path in scene.folders}
    is_megadepth = "sparse" in names or any(f"/{name}/" in f"{tree.root}/{scene.path}" for name in ABOVE_SCENES[3:])
    if "images" in names and (is_megadepth or not strict):
        found.append(f"{scene.path}images/")
    return found


def _name(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]

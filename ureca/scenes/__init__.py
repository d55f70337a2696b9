"""Drawn scenes with exact nested masks, and captions whose truth and uniqueness can be decided."""

from ureca.scenes.captions import RegionCaptions
from ureca.scenes.language import Caption, CaptionError, Description, parse
from ureca.scenes.rendering import Rendering, render
from ureca.scenes.resolve import resolve
from ureca.scenes.scene import Region, Scene, read_scene, scene_of

__all__ = [
    "Caption",
    "CaptionError",
    "Description",
    "Region",
    "RegionCaptions",
    "Rendering",
    "Scene",
    "parse",
    "read_scene",
    "render",
    "resolve",
    "scene_of",
]

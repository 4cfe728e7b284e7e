"""`scenes`, the embedded data: generated images, captions and audio clips that all carry the same facts."""

from mm.data.scenes.audio import render_audio
from mm.data.scenes.folder import Layout, ensure_scenes, sample_at, write_scenes
from mm.data.scenes.grammar import VOCABULARY, captions
from mm.data.scenes.image import render_image
from mm.data.scenes.scene import Look, Relation, Scene, SceneObject, capacity, scene_at

__all__ = [
    "VOCABULARY",
    "Layout",
    "Look",
    "Relation",
    "Scene",
    "SceneObject",
    "capacity",
    "captions",
    "ensure_scenes",
    "render_audio",
    "render_image",
    "sample_at",
    "scene_at",
    "write_scenes",
]

"""A tiny Segment Anything model as the segmenter of a service."""

from pathlib import Path

import torch

from tests.masks.generators.test_sam import build_tiny_sam
from ureca.masks.generators.settings import SamConfig
from ureca.pipelines.serve_settings import ServeSettings
from ureca.pipelines.serving.deployments import SegmenterReplica


def save_tiny_sam(path: Path) -> SamConfig:
    """Write a checkpoint, and return settings that load it and keep all masks."""
    torch.save(build_tiny_sam().state_dict(), path)
    return SamConfig(
        checkpoint=path, model_type="vit_b", points_per_side=4, pred_iou_thresh=0, stability_score_thresh=0
    )


class TinySamReplica(SegmenterReplica):
    """The segmenter's deployment, with the tiny architecture registered in segment-anything."""

    def __init__(self, settings: ServeSettings) -> None:
        import segment_anything

        segment_anything.sam_model_registry["vit_b"] = build_tiny_sam
        super().__init__(settings)

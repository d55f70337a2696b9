"""``ureca bench sam``: masks of everything in images, against Segment Anything's own generator, on a CPU.

The network has the size of a released one and random weights, of which the thresholds keep as many masks as trained
weights do: a third of the predicted qualities, and of these half of the stabilities.
"""

import argparse
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ureca.masks.generators.everything import EverythingGenerator
from ureca.masks.generators.prompted_network import PromptedNetwork
from ureca.masks.generators.sam import SamMaskGenerator, SamNetwork
from ureca.masks.generators.settings import AutomaticMaskSettings
from ureca.masks.mask import Mask

_ENCODERS = {
    "vit_b": (768, 12, 12, (2, 5, 8, 11)),
    "vit_l": (1024, 24, 16, (5, 11, 17, 23)),
    "vit_h": (1280, 32, 16, (7, 15, 23, 31)),
    "small": (192, 2, 3, (1,)),
}
"""Width, layers, heads, and layers with global attention."""


def main(argv: Sequence[str]) -> int:
    """Measure both sides, and print their CPU seconds, the ratio, and how many pixels of their masks differ.

    Returns:
        1 if the masks are not the same, else 0.
    """
    parser = argparse.ArgumentParser(prog="ureca bench sam", description=__doc__)
    parser.add_argument("--encoder", choices=_ENCODERS, default="vit_b", help="image encoder (default: %(default)s)")
    parser.add_argument("--images", type=int, default=1, help="number of images (default: %(default)s)")
    parser.add_argument("--points", type=int, default=32, help="points along one side (default: %(default)s)")
    parser.add_argument("--height", type=int, default=1500, help="height of the images (default: %(default)s)")
    parser.add_argument("--width", type=int, default=2250, help="width of the images (default: %(default)s)")
    options = parser.parse_args(argv)
    import torch
    from segment_anything import SamAutomaticMaskGenerator

    torch.set_num_threads(1)
    sam = build_sam(options.encoder)
    images = [_image(options.height, options.width, seed) for seed in range(options.images)]
    thresholds = thresholds_of(SamNetwork(sam), images[0])
    settings = AutomaticMaskSettings.model_validate({"points_per_side": options.points, **thresholds})
    ours, theirs = (
        SamMaskGenerator.from_model(sam, settings),
        SamAutomaticMaskGenerator(
            sam, **settings.model_dump(exclude={"point_grids", "output_mode"}), output_mode="coco_rle"
        ),
    )
    encoding_s = 0.0
    encode = sam.image_encoder.forward

    def timed(values: Any) -> Any:
        nonlocal encoding_s
        started = time.process_time()
        encoded = encode(values)
        encoding_s += time.process_time() - started
        return encoded

    sam.image_encoder.forward = timed
    seconds = {"theirs": 0.0, "ours": 0.0}
    num_masks = num_different = num_pixels = 0
    for image in images:
        started = time.process_time()
        records = [record for record in theirs.generate(image) if record["area"] > 0]
        seconds["theirs"] += time.process_time() - started
        started = time.process_time()
        masks = ours.generate(image)
        seconds["ours"] += time.process_time() - started
        if [mask.extra["point_coords"] for mask in masks] != [record["point_coords"] for record in records]:
            print(f"DIFFERENT: {len(masks)} masks, against {len(records)} of the package")
            return 1
        num_masks += len(masks)
        num_different += _different_pixels(masks, records)
        num_pixels += len(masks) * options.height * options.width
    count = options.images
    print(f"{count} images of {options.height} x {options.width}, {options.points} x {options.points} points, "
          f"{options.encoder}, {num_masks / count:.0f} masks an image")  # fmt: skip
    for name, title in (("theirs", "segment_anything"), ("ours", "ureca")):
        print(f"{title:18} {seconds[name] / count:8.1f} CPU s an image")
    print(f"of each            {encoding_s / 2 / count:8.1f} CPU s are the image encoder's")
    print(f"ratio              {seconds['theirs'] / seconds['ours']:8.2f}")
    print(f"pixels that differ {num_different:8d} of {num_pixels}")
    return int(num_different > 1e-6 * num_pixels)


def build_sam(encoder: str) -> Any:
    """Build a network with a released decoder, and random weights that make smooth masks of distinct quality."""
    import torch
    from segment_anything.build_sam import _build_sam

    torch.manual_seed(0)
    width, depth, heads, with_global_attention = _ENCODERS[encoder]
    sam = _build_sam(
        encoder_embed_dim=width,
        encoder_depth=depth,
        encoder_num_heads=heads,
        encoder_global_attn_indexes=list(with_global_attention),
    )
    with torch.no_grad():
        sam.mask_decoder.iou_prediction_head.layers[-1].bias += 1  # qualities are positive, as trained ones are
    return sam


def thresholds_of(
    network: PromptedNetwork,
    image: npt.NDArray[np.uint8],
    offset: float = 0.02,
    size: tuple[int, int] | None = (300, 200),
) -> dict[str, float]:
    """Return thresholds that a third of the masks of 4 x 4 points pass, and half of these the second one.

    Args:
        network: network with random weights.
        image: uint8 RGB [H, W, 3].
        offset: shift of the logits by which stability is measured.
        size: width and height (px) to which the image is resized before; None: as it is.
    """
    settings = AutomaticMaskSettings(
        points_per_side=4,
        pred_iou_thresh=0,
        stability_score_thresh=0,
        stability_score_offset=offset,
        box_nms_thresh=1.0,
    )
    if size is not None:
        image = np.asarray(Image.fromarray(image).resize(size))
    masks = EverythingGenerator(network, settings).generate(image)
    quality = max(1e-6, float(np.quantile([mask.predicted_iou or 0 for mask in masks], 2 / 3)))
    stable = [mask.stability_score or 0 for mask in masks if (mask.predicted_iou or 0) > quality]
    return {
        "pred_iou_thresh": quality,
        "stability_score_thresh": float(np.median(stable)) if stable else 0.0,
        "stability_score_offset": offset,
        "box_nms_thresh": 1.0,
    }


def _image(height: int, width: int, seed: int) -> npt.NDArray[np.uint8]:
    coarse = np.random.default_rng(seed).integers(0, 256, (10, 15, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def _different_pixels(masks: Sequence[Mask], records: Sequence[dict[str, Any]]) -> int:
    from pycocotools import mask as coco_mask

    different = 0
    for mask, record in zip(masks, records, strict=True):
        if mask.rle != record["segmentation"]:
            pixels = coco_mask.decode(record["segmentation"]).astype(bool)
            different += int(np.count_nonzero(mask.decode() != pixels))
    return different

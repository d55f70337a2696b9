"""Benchmarks as their authors lay them out, of drawn images."""

import json
import pickle
from pathlib import Path
from typing import Any

from tests.drawn import HEIGHT, WIDTH, drawn_image, png


def write_refcoco(data: Path, num_images: int = 4) -> Path:
    """``refcoco+/refs(unc).p``, ``refcoco+/instances.json`` and ``train2014`` beside it; returns ``refcoco+``.

    Image 100 + n is in split val (n even) or testA; annotation 10 n + m is mask m of it; the first two have refs.
    """
    folder, images = data / "refcoco+", data / "train2014"
    folder.mkdir(parents=True)
    images.mkdir()
    refs: list[dict[str, Any]] = []
    instances: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": [], "categories": [{"id": 1}]}
    for number in range(num_images):
        pixels, masks = drawn_image(number)
        name = f"COCO_train2014_{100 + number:012d}.jpg"
        (images / name).write_bytes(png(pixels))
        instances["images"].append({"id": 100 + number, "file_name": name, "height": HEIGHT, "width": WIDTH})
        for place, mask in enumerate(masks):
            segmentation: Any = {"size": [HEIGHT, WIDTH], "counts": mask.rle["counts"]}
            if place == 1:
                segmentation = [[15, 17, 29, 17, 29, 31, 15, 31]]
            instances["annotations"].append(
                {"id": 10 * number + place, "image_id": 100 + number, "segmentation": segmentation, "category_id": 1}
            )
        for place in range(2):
            sentences = [
                {"sent": sent, "raw": sent, "tokens": sent.split(), "sent_id": place}
                for sent in (f"disc {place} of {number}", f"the {place} disc", f"the {place} disc")
            ]
            refs.append(
                {
                    "ref_id": len(refs),
                    "ann_id": 10 * number + place,
                    "image_id": 100 + number,
                    "file_name": name.replace(".jpg", f"_{place}.jpg"),
                    "split": "testA" if number % 2 else "val",
                    "category_id": 1,
                    "sent_ids": [place],
                    "sentences": sentences,
                }
            )
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    (folder / "instances.json").write_text(json.dumps(instances))
    return folder


def write_visual_genome(folder: Path, num_images: int = 4) -> Path:
    """``region_descriptions.json``, ``image_data.json``, ``VG_100K`` and ``VG_100K_2``; three boxes an image."""
    folder.mkdir(parents=True)
    sizes, descriptions = [], []
    for number in range(1, num_images + 1):
        images = folder / ("VG_100K_2" if number % 2 else "VG_100K")
        images.mkdir(exist_ok=True)
        (images / f"{number}.jpg").write_bytes(png(drawn_image(number)[0]))
        sizes.append({"image_id": number, "width": WIDTH, "height": HEIGHT, "url": "https://x", "coco_id": None})
        boxes = [(5, 6, 20, 10), (-3, 50, 30, 30), (40, 10, 5, 5)]
        regions = [
            {
                "region_id": 100 * number + place,
                "image_id": number,
                "x": x,
                "y": y,
                "width": width,
                "height": height,
                "phrase": f" a box  {place} ",
            }
            for place, (x, y, width, height) in enumerate(boxes)
        ]
        descriptions.append({"id": number, "regions": regions})
    (folder / "image_data.json").write_text(json.dumps(sizes))
    (folder / "region_descriptions.json").write_text(json.dumps(descriptions))
    return folder

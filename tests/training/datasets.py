"""Small datasets to train on: drawn images with four regions each, as a regions dataset and as URECA's JSONL."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.drawn import HEIGHT, WIDTH, drawn_image, write_corpus
from ureca.data.listing import list_images
from ureca.data.output import Output
from ureca.data.partitions import PartitionReport
from ureca.masks.mask import Mask


def region(mask: Mask, **changes: Any) -> dict[str, Any]:
    """A captioned region as ``ureca curate`` writes it."""
    made = {
        "region_id": mask.id,
        "rle": mask.rle["counts"],
        "bbox_xywh": list(mask.bbox_xywh),
        "area_px": mask.area_px,
        "parent_id": -1,
        "depth": 0,
        "short_caption": f"disc {mask.id}",
        "detailed_caption": f"disc {mask.id}, in detail",
        "caption": f"the only disc {mask.id}",
        "lookalike_ids": [],
        "verdict": "unchecked",
        "status": "ok",
    }
    return made | changes


def row(image_id: str, regions: Sequence[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """An image as ``ureca curate`` writes it."""
    made = {"image_id": image_id, "uri": f"{image_id}.png", "height": HEIGHT, "width": WIDTH, "regions": list(regions)}
    return made | {"error": None} | changes


def write_dataset(folder: Path, num_images: int, images_per_partition: int = 2) -> Path:
    """Write images and a regions dataset of them; returns the dataset's folder."""
    images, dataset = folder / "images", folder / "dataset"
    ids = write_corpus(images, num_images)
    output = Output(str(dataset))
    output.write_run({"command": "curate", "state": "finished"})
    output.add_images(list_images(str(images), annotations="beside"), images_per_partition)
    for partition, first in enumerate(range(0, num_images, images_per_partition)):
        seeds = range(first, min(first + images_per_partition, num_images))
        rows = [row(ids[seed], [region(mask) for mask in drawn_image(seed)[1]]) for seed in seeds]
        output.write_partition(partition, rows, PartitionReport())
    return dataset


def line(image: str, mask_id: str, answer: str = "a disc", question: str = "<image>\nWhat is it?") -> dict[str, Any]:
    """A line of URECA's JSONL."""
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": 0, "image": image, "mask_id": mask_id, "conversations": turns}


def write_jsonl(path: Path, lines: Sequence[dict[str, Any] | str]) -> Path:
    """Write lines; texts as they are."""
    texts = [one if isinstance(one, str) else json.dumps(one) for one in lines]
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


class Words:
    """Counts words, and one more for a question: a stand-in for a tokenizer."""

    special_tokens = ("<IMG_CONTEXT>", "<|im_end|>")

    def __init__(self, name: str = "words") -> None:
        self.identity = hashlib.blake2b(name.encode()).hexdigest()

    def of_questions(self, questions: Sequence[str]) -> list[int]:
        return [len(question.split()) + 1 for question in questions]

    def of_answers(self, answers: Sequence[str]) -> list[int]:
        return [len(answer.split()) for answer in answers]

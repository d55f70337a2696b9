"""Inputs that the pages suppose, as small as they can be and under the names that the pages give them."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.chat_endpoint import endpoint_process
from tests.documents.pages import ROOT
from tests.drawn import drawn_image, png, write_corpus
from tests.evaluation.benchmarks.folders import write_refcoco
from tests.ops.test_status import begin, do
from tests.s3 import BUCKET, Store, s3_server
from ureca.jobs.cli import main
from ureca.scenes.files import write_scenes

NUM_IMAGES = 3


def _images(place: Path) -> None:
    write_corpus(place, NUM_IMAGES)


def _scenes(place: Path) -> None:
    write_scenes(place, NUM_IMAGES, split="validation", seed=3, width_px=112, height_px=112)


def _checkpoint(place: Path) -> None:
    assert main(["init-tiny", str(place)]) == 0


def _internvl(place: Path) -> None:
    from tests.llm.tiny_models import internvl

    internvl(place)


def _bert(place: Path) -> None:
    from tests.evaluation.tiny_encoders import save_bert

    save_bert(place)


def _released(place: Path) -> None:
    from tests.model.test_released_tokenizer import write_released

    write_released(place, "internlm2")


def _sa1b_lines(place: Path) -> None:
    """Captions of SA-1B's masks in URECA's JSONL, with their images beside."""
    from tests.training.datasets import line, write_jsonl

    ids = write_corpus(place.parent, NUM_IMAGES)
    write_jsonl(place, [line(f"{id}.png", str(mask), f"disc {mask} of {id}") for id in ids for mask in (1, 2, 3, 4)])


def _answers(place: Path) -> None:
    lines = [
        {"image": f"img_{number:04d}", "mask_id": mask, "caption": f"disc {mask}"}
        for number in range(NUM_IMAGES)
        for mask in (1, 2, 3, 4)
    ]
    place.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _captions(place: Path) -> None:
    annotated = ["--listing.annotations", "beside", "--masks.kind", "annotations"]
    with TemporaryDirectory() as name:  # beside the captions, the images would be taken for those of the benchmark
        folder = Path(name)
        _images(folder / "images")
        _checkpoint(folder / "captioner")
        command = ["caption", str(folder / "images"), str(place), "--model", str(folder / "captioner")]
        assert main([*command, *annotated, "--captioner.max-new-tokens", "4"]) == 0


def _photograph(place: Path) -> None:
    from PIL import Image

    Image.fromarray(drawn_image(1)[0]).resize((320, 240)).save(place)


def _photographs(place: Path) -> None:
    """The list of images that ``make demo`` leaves; drawn ones stand for its photographs."""
    (place.parent / "a.png").write_bytes(png(drawn_image(1)[0]))
    place.write_text("a.png\n")


def _cluster_settings(place: Path) -> None:
    place.write_text("{annotator: {kind: prompted}, mllm: {kind: fake, seconds_per_answer: 0.01}}\n")


def _coco_file(place: Path) -> None:
    ids = write_corpus(place.parent / "IMAGES", NUM_IMAGES)
    files = [place.parent / "IMAGES" / f"{id}.json" for id in ids]
    contents = [json.loads(file.read_bytes()) for file in files]
    for id, (file, content) in enumerate(zip(files, contents, strict=True)):
        content["image"] |= {"id": id, "file_name": f"train/{file.stem}.png"}
        file.unlink()
    annotations = [{**record, "image_id": id} for id, one in enumerate(contents) for record in one["annotations"]]
    place.write_text(json.dumps({"images": [one["image"] for one in contents], "annotations": annotations}))


def _data(place: Path) -> None:
    write_refcoco(place)


BUILDERS: Mapping[str, Callable[[Path], None]] = {
    **dict.fromkeys(("IMAGES", "INPUT", "SAMPLE"), _images),
    **dict.fromkeys(("CURATED", "BENCHMARK", "SCENES", "SOURCE"), _scenes),
    **dict.fromkeys(("CHECKPOINT", "runs/ureca"), _checkpoint),
    "RELEASED": _released,
    "OpenGVLab/InternVL3-8B-hf": _internvl,
    "roberta-large": _bert,
    "test.jsonl": _sa1b_lines,
    "answers.jsonl": _answers,
    "instances.json": _coco_file,
    "captions": _captions,
    "data": _data,
    "photo.jpg": _photograph,
    "demo/images.txt": _photographs,
    "cluster.yaml": _cluster_settings,
    "tokens.txt": lambda place: place.write_text("0123456789abcdef01234567\n") and None,
    "cluster": lambda place: place.symlink_to(ROOT / "cluster"),
}
"""By the name below the working folder; what a command writes by a name of these is not made before."""


@contextmanager
def servers() -> Iterator[Mapping[str, str]]:
    """A chat endpoint and an object store; yields what stands for the addresses that the pages have for them."""
    with s3_server() as store, endpoint_process(slots=8, seconds=0.001) as endpoint:
        _fill(store)
        at = f"?endpoint_override={store.endpoint}&scheme=http"
        yield {
            "http://localhost:8000/v1": f"{endpoint}/v1",
            **{f"s3://BUCKET/{name}": f"s3://{BUCKET}/{name}{at}" for name in ("folder", "images", "curated")},
        }


def _fill(store: Store) -> None:
    """An image to curate, and a curation of which one partition of two images is done."""
    pixels, _ = drawn_image(2)
    store.put("images/drawn.png", png(pixels))
    with TemporaryDirectory() as folder:
        do(begin(Path(folder), "stopped"), 0, at_s=1)
        for path in filter(Path.is_file, Path(folder).rglob("*")):
            store.put(f"curated/{path.relative_to(folder)}", path.read_bytes())

"""Simulated runs from a few numbers."""

from collections.abc import Iterable
from typing import Any

from ureca.ops.measured import Kind, Measured, Questions
from ureca.ops.simulator import Arrangement, Service, Simulated, simulate
from ureca.pipelines.curate_settings import CurateSettings


def chain(num_questions: int) -> Questions:
    """Make an image whose questions form a chain."""
    questions = Questions()
    last = questions.add("decode", [])
    for _ in range(num_questions):
        last = questions.add("short", [last])
    return questions


def measured_run(images: list[Questions], asked: Iterable[Kind] = ("short",), **changes: Any) -> Measured:
    """Make the measurements of a run with such images."""
    figures = {
        **dict.fromkeys(("prompt_tokens_per_call", "new_tokens_per_call", "pixel_bytes", "mask_bytes"), 10.0),
        **dict.fromkeys(("regions_per_image", "masks_per_image", "stored_bytes"), 5.0),
        **{"generate_s": 0.0, "tree_s": 0.0, "rows_s": 0.0, "wall_s": 0.0, "calls_per_question": 1.0},
        **{"num_images": len(images), "num_calls": sum(image.count(asked) for image in images)},
    }
    return Measured(
        settings=CurateSettings(input="in", output="out"),
        images=images,
        asked=frozenset(asked),
        **{"answer_s": (1.0,), **figures, **changes},
    )


def service(**changes: Any) -> Service:
    """Make durations of zero, except a second for each answer."""
    return Service(**{"generate_s": 0.0, "tree_s": 0.0, "step_s": 0.0, "answer_s": (1.0,), **changes})


def arrangement(**changes: Any) -> Arrangement:
    """Make an arrangement of one actor without limits."""
    one = dict.fromkeys(("mask_actors", "tree_tasks", "row_actors"), 1)
    many = dict.fromkeys(
        ("cpus", "partitions_in_flight", "images_in_flight", "requests_per_actor", "engine_slots"), 10**6
    )
    return Arrangement(**{**one, **many, "masks_on_cpu": True, **changes})


def duration_of(questions: Questions, answer_s: float, asked: Iterable[Kind]) -> float:
    """Return the seconds that one image takes alone."""
    return simulated([questions], [1], service(answer_s=(answer_s,)), asked=asked).end.now_s


def simulated(
    images: list[Questions],
    partition_sizes: list[int],
    times: Service | None = None,
    *,
    asked: Iterable[Kind] = ("short",),
    **changes: Any,
) -> Simulated:
    """Simulate partitions of images; ``changes`` apply to the arrangement."""
    return simulate(measured_run(images, asked), times or service(), arrangement(**changes), partition_sizes)

"""``ureca plan MEASURED --images N``: what a curation would take on other resources, simulated from a small run."""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    from ureca.ops.forecast import Calibrated
    from ureca.ops.measured import Measured
    from ureca.pipelines.curate_settings import CurateSettings


def main(argv: Sequence[str]) -> int:
    """Simulate and print; nothing runs and nothing is written."""
    arguments, changes = _parser().parse_known_args(argv)
    from ureca.ops.forecast import calibrate, forecast, forecast_text, partition_sizes
    from ureca.ops.measured import measured as measure
    from ureca.pipelines.curate_settings import CurateSettings
    from ureca.pipelines.plan import arrangement_of

    measured = measure(arguments.measured)
    before = arrangement_of(
        CurateSettings(**measured.settings),
        measured.num_images,
        pixels_per_image=measured.pixel_bytes / 3,
        num_cpus=arguments.measured_cpus or _cpus_here(),
        num_gpus=arguments.measured_gpus,
        engine_slots=arguments.measured_engine_slots,
    )
    calibrated = calibrate(
        measured, before, partition_sizes(measured.num_images, measured.settings["images_per_partition"])
    )
    calibrated = _overridden(calibrated, arguments)
    settings = _changed(measured, arguments.config, changes)
    after = arrangement_of(
        settings,
        arguments.images,
        pixels_per_image=measured.pixel_bytes / 3,
        num_cpus=arguments.cpus or _cpus_here(),
        num_gpus=arguments.gpus,
        engine_slots=arguments.engine_slots,
    )
    predicted = forecast(measured, calibrated, after, arguments.images, settings.images_per_partition)
    print(predicted.to_json() if arguments.json else forecast_text(predicted, measured, calibrated, after))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ureca plan",
        description="Predict what a curation takes: duration, how busy each part is, which one saturates first, memory "
        "and storage. A small finished run tells what work takes; a simulation tells the rest.",
        epilog="Settings of `ureca curate` change what is simulated: --resources.curate.num-actors 8, "
        "--mllm.max-concurrency 256; all others are those of the run that was measured. "
        "Another kind of model or proposals needs --config, which replaces them all.",
        allow_abbrev=False,
    )
    parser.add_argument("measured", metavar="MEASURED", help="OUTPUT of a finished `ureca curate` over a small sample")
    parser.add_argument("--images", type=_count, required=True, help="images to curate")
    parser.add_argument("--config", help="YAML of `ureca curate`, in the place of the settings of the measured run")
    parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")
    there = parser.add_argument_group("where it shall run")
    there.add_argument("--cpus", type=_positive, help="CPUs of the cluster (default: this machine's)")
    there.add_argument("--gpus", type=float, default=0.0, help="GPUs of the cluster, but for a chat model elsewhere")
    there.add_argument(
        "--engine-slots", type=_count, help="answers its servers write at a time (default: all they are asked)"
    )
    service = parser.add_argument_group("what work takes there, where it differs from what was measured")
    service.add_argument("--answer-s", type=_positive, help="seconds of an answer, at so many at a time")
    service.add_argument("--generate-s", type=_positive, help="seconds of a worker to propose an image's masks")
    service.add_argument("--step-s", type=_positive, help="seconds of a curating actor's processor a question")
    service.add_argument("--startup-s", type=_positive, help="seconds before the first image and after the last")
    here = parser.add_argument_group("where MEASURED ran")
    here.add_argument("--measured-cpus", type=_positive, help="(default: this machine's)")
    here.add_argument("--measured-gpus", type=float, default=0.0, help="(default 0)")
    here.add_argument("--measured-engine-slots", type=_count, help="(default: all that it was asked)")
    return parser


def _positive(text: str) -> float:
    number = float(text)
    if not number > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of 1 or more")
    return number


def _cpus_here() -> int:
    return max(2, os.cpu_count() or 1)


def _overridden(calibrated: "Calibrated", arguments: argparse.Namespace) -> "Calibrated":
    """With what is known better than from the measured run."""
    service = calibrated.service
    for name in ("generate_s", "step_s"):
        if (seconds := getattr(arguments, name)) is not None:
            service = replace(service, **{name: seconds})
    if arguments.answer_s is not None:
        service = replace(service, answer_s=(arguments.answer_s,))
    startup_s = calibrated.startup_s if arguments.startup_s is None else arguments.startup_s
    return replace(calibrated, service=service, startup_s=startup_s)


def _changed(measured: "Measured", config: str | None, changes: Sequence[str]) -> "CurateSettings":
    """The settings of the measured run, or of a file, with flags over them."""
    from ureca.pipelines.curate_settings import CurateSettings

    before = CurateSettings(**measured.settings)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder, "measured.yaml")
        base.write_text(yaml.safe_dump(before.model_dump(mode="json", exclude_none=True)), encoding="utf-8")
        file = str(base) if config is None else config
        return CurateSettings.load([before.input, before.output, *changes, "--config", file])


if __name__ == "__main__":
    from ureca.jobs.cli import run_command

    sys.exit(run_command(main, sys.argv[1:]))

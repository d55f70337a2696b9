"""Prediction of a curation on other resources, from the measurements of a finished one."""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from ureca.ops.forecast import calibrate, forecast, forecast_text, partition_sizes
from ureca.ops.measured import Measured, measure_run
from ureca.ops.simulator import Arrangement
from ureca.pipelines.batch.arrangement import EngineSlots, arrange
from ureca.pipelines.curate_settings import CurateSettings
from ureca.pipelines.plan_settings import PlanSettings


def plan_from_run(settings: PlanSettings, changes: Sequence[str] = ()) -> str:
    """Predict a curation by simulation, and render it as lines of text or as JSON; nothing is started or written.

    Args:
        settings: settings of the plan.
        changes: arguments of ``ureca curate`` that differ from those of the measured run.

    Raises:
        InputError: the measured run cannot be learned from.
        SettingsError: the changed settings are not valid, or the operators cannot run side by side on the cluster.
    """
    measured = measure_run(settings.measured)
    before = CurateSettings(**measured.settings)
    ran_on = _arrangement(
        before,
        measured.num_images,
        measured,
        num_cpus=settings.measured_cpus,
        num_gpus=settings.measured_gpus,
        engine_slots=settings.measured_engine_slots,
    )
    calibrated = calibrate(measured, ran_on, partition_sizes(measured.num_images, before.images_per_partition))
    known = {name: getattr(settings, name) for name in ("generate_s", "step_s")}
    service = replace(calibrated.service, **{name: value for name, value in known.items() if value is not None})
    if settings.answer_s is not None:
        service = replace(service, answer_s=(settings.answer_s,))
    startup_s = calibrated.startup_s if settings.startup_s is None else settings.startup_s
    calibrated = replace(calibrated, service=service, startup_s=startup_s)
    after = _changed(before, changes)
    arrangement = _arrangement(
        after,
        settings.images,
        measured,
        num_cpus=settings.cpus,
        num_gpus=settings.gpus,
        engine_slots=settings.engine_slots,
    )
    predicted = forecast(measured, calibrated, arrangement, settings.images, after.images_per_partition)
    return predicted.to_json() if settings.as_json else forecast_text(predicted, measured, calibrated, arrangement)


def _arrangement(
    settings: CurateSettings,
    num_images: int,
    measured: Measured,
    *,
    num_cpus: float | None,
    num_gpus: float,
    engine_slots: int | None,
) -> Arrangement:
    arrangement = arrange(
        settings,
        "curate",
        num_images,
        EngineSlots.of_settings(settings.mllm),
        pixels_per_image=measured.pixel_bytes / 3,
        num_cpus=num_cpus or max(2, os.cpu_count() or 1),
        num_gpus=num_gpus,
    )
    return arrangement if engine_slots is None else replace(arrangement, engine_slots=engine_slots)


def _changed(before: CurateSettings, changes: Sequence[str]) -> CurateSettings:
    """Read the arguments of ``ureca curate`` over the settings of the measured run, or over those of ``--config``."""
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder, "measured.yaml")
        base.write_text(yaml.safe_dump(before.model_dump(mode="json", exclude_none=True)), encoding="utf-8")
        config = [] if any(word.partition("=")[0] == "--config" for word in changes) else ["--config", str(base)]
        return CurateSettings.load([before.input, before.output, *changes, *config])

"""The experiment: scenes, models trained concurrently, captions and tables; finished work is kept."""

import json
import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from experiments.science.captions import caption_scenes, read_captions
from experiments.science.settings import ScienceSettings
from experiments.science.tables import write_tables
from experiments.science.training import train_variant
from ureca.data.output import Output
from ureca.data.run_record import RunRecord, config_of
from ureca.errors import OutputError
from ureca.evaluation.settings import Metric
from ureca.io import replacing
from ureca.scenes.composition import Split
from ureca.scenes.files import write_scenes

_FIGURES, _CAPTIONS = "figures.json", "captions.json"


def run_science(settings: ScienceSettings) -> list[Path]:
    """Train the models of the settings, caption the test scenes with them, and compare the captions.

    Returns:
        The paths of the tables' files.

    Raises:
        OutputError: the folder holds an experiment with other settings, or other files.
        SettingsError: the base is no checkpoint of URECA.
    """
    compared = settings.compared  # refuses a base that is no checkpoint before anything is drawn
    folder = settings.output
    folder.mkdir(parents=True, exist_ok=True)
    record = _begin_record(settings)
    _draw(settings, "train", settings.scenes.train)
    _draw(settings, "test", settings.scenes.test)
    missing = [name for name in compared if not (folder / "models" / name / _CAPTIONS).exists()]
    for name in _train_and_caption_all(missing, settings):
        _tell(f"{name}: finished")
        _write_finished(settings, ())
    tables = _write_finished(settings, settings.metrics)
    record.write("finished")
    return tables


def _train_and_caption_all(names: list[str], settings: ScienceSettings) -> Iterator[str]:
    """Train models and caption with them; yields the name of each finished model."""
    if settings.processes == 1 or len(names) < 2:
        for name in names:
            yield _train_and_caption(name, settings)
        return
    spawning = multiprocessing.get_context("spawn")
    # A separate process for each model: torch caches kernels for every length of a batch, which add up to gigabytes.
    with ProcessPoolExecutor(settings.processes, spawning, max_tasks_per_child=1) as pool:
        runs = [pool.submit(_train_and_caption, name, settings) for name in names]
        try:
            for run in as_completed(runs):
                yield run.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _train_and_caption(name: str, settings: ScienceSettings) -> str:
    """Train a model, unless that was done before, and caption the test set with it."""
    import torch

    torch.set_num_threads(1)
    folder = settings.output / "models" / name
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / _FIGURES).exists():
        figures = train_variant(
            name, settings, _scenes(settings, "train"), folder, tell=lambda text: _tell(f"{name}: {text}")
        )
        _write(folder / _FIGURES, figures)
    cpu_s = caption_scenes(
        folder / "model",
        _scenes(settings, "test"),
        folder / _CAPTIONS,
        max_new_tokens=settings.max_new_tokens,
    )
    _tell(f"{name}: captions of the test set took {cpu_s:.0f} CPU seconds")
    return name


def _write_finished(settings: ScienceSettings, metrics: Sequence[Metric]) -> list[Path]:
    """Write the tables of all finished models."""
    captions, figures = {}, {}
    for name in settings.compared:
        folder = settings.output / "models" / name
        if (folder / _CAPTIONS).exists():
            captions[name] = read_captions(folder / _CAPTIONS)
            figures[name] = json.loads((folder / _FIGURES).read_text(encoding="utf-8"))
    target = settings.tables or settings.output
    target.mkdir(parents=True, exist_ok=True)
    if not captions:
        return []
    settings_path = target / "settings.json"
    _write(settings_path, {"settings": config_of(settings), "models": figures})
    return [*write_tables(settings, captions, figures, target, metrics), settings_path]


def _begin_record(settings: ScienceSettings) -> RunRecord:
    """Begin or resume the record of the experiment; a folder with anything else is refused."""
    record = RunRecord(Output(str(settings.output)), settings.command, settings)
    if not record.before and any(settings.output.iterdir()):
        raise OutputError(f"{settings.output} is not empty and no experiment; name another folder")
    record.check_unchanged("Name another folder")
    record.write("running")
    return record


def _draw(settings: ScienceSettings, split: Split, number: int) -> None:
    destination = _scenes(settings, split)
    if (destination / "captions.jsonl").exists():
        return
    _tell(f"drawing {number} scenes to {destination}")
    side_px = settings.scenes.side_px
    write_scenes(
        destination,
        number,
        split=split,
        seed=settings.scenes.seed,
        width_px=side_px,
        height_px=side_px,
        captions=settings.scenes.captions,
        num_processes=settings.processes,
        overwrite=True,
    )


def _scenes(settings: ScienceSettings, split: Split) -> Path:
    return settings.output / "scenes" / split


def _write(path: Path, content: dict[str, Any]) -> None:
    with replacing(path, overwrite=True) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

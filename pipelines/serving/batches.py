"""Batch jobs that clients of the service start: the batch verb in a process of its own."""

import asyncio
import json
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, Protocol

import yaml
from pydantic import BaseModel, Field

from ureca.model.settings import CaptionSettings
from ureca.pipelines.serve_settings import ServeSettings
from ureca.serving.schemas import ApiError, Generation, caption_settings


class BatchRequest(Generation):
    """Which images a job captions, and how."""

    input: str = Field(
        min_length=1,
        max_length=4096,
        description="path of a folder, list, Parquet file or output of a run, below a folder that the service may read",
    )


class Batch(BaseModel):
    """A job."""

    id: str
    object: Literal["batch"] = "batch"
    status: Literal["in_progress", "completed", "failed"]
    created_at: int = Field(description="seconds since 1970")
    input: str
    output: str = Field(description="folder with the dataset and run.json")
    num_rows: int | None = Field(default=None, description="rows written so far, as run.json has it; null: not yet")


class Batches(Protocol):
    """What starts jobs and tells how they are."""

    async def submit(self, request: BatchRequest) -> Batch:
        """Start a job; ``Refusal`` 422 (no such input) or 429 (as many run as may)."""
        ...

    async def get(self, id: str) -> Batch:
        """A job; ``Refusal`` 404."""
        ...


@dataclass(frozen=True, eq=False)
class _Job:
    input: Path
    output: Path
    created_at: int
    process: "subprocess.Popen[bytes]"


class BatchJobs:
    """Runs jobs, each a process that ends with this one.

    Args:
        settings: of the service, whose ``batches`` name folders.
        environment: of the processes.
        verb: the command of the batch verb, before its arguments.
    """

    def __init__(
        self,
        settings: ServeSettings,
        environment: Mapping[str, str],
        command: Sequence[str] = (sys.executable, "-m", "ureca.jobs.caption"),
    ) -> None:
        if settings.batches.output is None:
            raise ValueError("batches are off")
        self._settings = settings
        self._output = settings.batches.output.resolve()
        self._environment = dict(environment)
        self._command = tuple(command)
        self._jobs: dict[str, _Job] = {}

    async def submit(self, request: BatchRequest) -> Batch:
        """Start a job.

        Raises:
            Refusal: 422 ``not_allowed``, ``not_found`` or ``too_many_tokens``; 429 ``too_many_jobs``.
        """
        path = self._allowed(request.input)
        captioner = caption_settings(self._settings.captioner, request)
        running = [job for job in self._jobs.values() if job.process.poll() is None]
        if len(running) >= self._settings.batches.max_jobs:
            message = f"{len(running)} jobs are running, which is the limit"
            raise ApiError(429, "too_many_jobs", message, retry_after_s=60)
        id = f"batch-{uuid.uuid4().hex}"
        self._jobs[id] = await asyncio.to_thread(self._start, id, path, captioner)
        return await self.get(id)

    async def get(self, id: str) -> Batch:
        """A job that was started since the service was.

        Raises:
            Refusal: 404 ``unknown_batch``.
        """
        if id not in self._jobs:
            raise ApiError(404, "unknown_batch", "there is no such job", param="batch_id")
        job = self._jobs[id]
        status = job.process.poll()
        return Batch(
            id=id,
            status="in_progress" if status is None else "completed" if status == 0 else "failed",
            created_at=job.created_at,
            input=str(job.input),
            output=str(job.output),
            num_rows=_rows_written(job.output),
        )

    def close(self) -> None:
        """End the jobs that run; the same input started again by the command goes on from there."""
        for job in self._jobs.values():
            if job.process.poll() is None:
                job.process.terminate()

    def _allowed(self, text: str) -> Path:
        try:
            path = Path(text).resolve()
            inside = any(path.is_relative_to(folder.resolve()) for folder in self._settings.batches.folders)
            if inside and path.exists():
                return path
        except (OSError, ValueError):  # names that no path can have
            inside = False
        # One answer whether it exists or not: what is elsewhere is nobody's business.
        code = "not_found" if inside else "not_allowed"
        raise ApiError(422, code, "this is nothing below a folder that the service may read", param="input")

    def _start(self, id: str, path: Path, captioner: CaptionSettings) -> _Job:
        self._output.mkdir(parents=True, exist_ok=True)
        settings = self._settings
        chosen = {
            "model": settings.model,
            "dtype": settings.dtype,
            "captioner": captioner.model_dump(mode="json"),
            "image_limits": settings.limits.image.model_dump(mode="json"),
            "resources": settings.batches.resources.model_dump(mode="json"),
        }
        if settings.masks.kind == "sam":
            chosen["masks"] = settings.masks.model_dump(mode="json")
        config = self._output / f"{id}.yaml"
        config.write_text(yaml.safe_dump(chosen), encoding="utf-8")
        output = self._output / id
        command = [*self._command, "--config", str(config), str(path), str(output)]
        log: IO[bytes]
        with (self._output / f"{id}.log").open("wb") as log:
            process = subprocess.Popen(  # noqa: S603 - the command is ours; of the request it has a path that was checked
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment
            )
        return _Job(path, output, int(time.time()), process)


def _rows_written(output: Path) -> int | None:
    try:
        rows = json.loads((output / "run.json").read_text(encoding="utf-8"))["totals"]["num_images"]
    except (OSError, ValueError, KeyError, TypeError):  # not there yet
        return None
    return rows if isinstance(rows, int) else None

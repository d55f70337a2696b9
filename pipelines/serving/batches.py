"""Batch jobs of the service: ``ureca caption`` as subprocesses."""

import asyncio
import json
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from ureca.model.settings import CaptionSettings
from ureca.pipelines.serve_settings import ServeSettings
from ureca.serving.schemas import ApiError, BatchJob, BatchRequest


@dataclass(frozen=True, eq=False)
class _RunningJob:
    input: Path
    output: Path
    created_at: int
    process: "subprocess.Popen[bytes]"


class BatchProcesses:
    """A ``BatchRunner`` that runs each job in a subprocess, which ends with this process.

    Args:
        settings: settings of the service, with ``batches`` enabled.
        command: command line of ``ureca caption``, without arguments.
        environment: environment variables of the subprocesses.
    """

    def __init__(self, settings: ServeSettings, command: Sequence[str], environment: Mapping[str, str]) -> None:
        if settings.batches.output is None:
            raise ValueError("batch jobs are disabled in the settings")
        self._settings = settings
        self._output = settings.batches.output.resolve()
        self._command = tuple(command)
        self._environment = dict(environment)
        self._jobs: dict[str, _RunningJob] = {}

    async def submit(self, request: BatchRequest) -> BatchJob:
        """Start a job.

        Raises:
            ApiError: 422 ``not_allowed``, ``not_found`` or ``too_many_tokens``; 429 ``too_many_jobs``.
        """
        path = self._check_input(request.input)
        captioner = request.apply_to(self._settings.captioner)
        num_running = sum(job.process.poll() is None for job in self._jobs.values())
        if num_running >= self._settings.batches.max_jobs:
            message = f"{num_running} jobs are running, which is the limit"
            raise ApiError(429, "too_many_jobs", message, retry_after_s=60)
        id = f"batch-{uuid.uuid4().hex}"
        self._jobs[id] = await asyncio.to_thread(self._start, id, path, captioner)
        return await self.get(id)

    async def get(self, id: str) -> BatchJob:
        """Return the status of a job that was started by this service.

        Raises:
            ApiError: 404 ``unknown_batch``.
        """
        if id not in self._jobs:
            raise ApiError(404, "unknown_batch", "there is no such job", param="batch_id")
        job = self._jobs[id]
        exit_status = job.process.poll()
        return BatchJob(
            id=id,
            status="in_progress" if exit_status is None else "completed" if exit_status == 0 else "failed",
            created_at=job.created_at,
            input=str(job.input),
            output=str(job.output),
            num_rows=_read_num_rows(job.output),
        )

    def close(self) -> None:
        """Terminate the running jobs. `ureca caption` with the same input and output resumes them."""
        for job in self._jobs.values():
            if job.process.poll() is None:
                job.process.terminate()

    def _check_input(self, text: str) -> Path:
        try:
            path = Path(text).resolve()
            is_inside = any(path.is_relative_to(folder.resolve()) for folder in self._settings.batches.folders)
            if is_inside and path.exists():
                return path
        except (OSError, ValueError, RuntimeError):  # not a valid path, or a loop of links
            is_inside = False
        # The response does not reveal whether a path outside of the folders exists.
        code = "not_found" if is_inside else "not_allowed"
        raise ApiError(422, code, "there is no such path in a folder that the service may read", param="input")

    def _start(self, id: str, path: Path, captioner: CaptionSettings) -> _RunningJob:
        self._output.mkdir(parents=True, exist_ok=True)
        settings = self._settings
        job_settings = {
            "model": settings.model,
            "dtype": settings.dtype,
            "engine": settings.engine,
            "vllm": settings.vllm.model_dump(mode="json"),
            "captioner": captioner.model_dump(mode="json"),
            "listing": {"only_below": [str(folder.resolve()) for folder in settings.batches.folders]},
            "image_limits": settings.limits.image.model_dump(mode="json"),
            "resources": settings.batches.resources.model_dump(mode="json"),
        }
        if settings.masks.kind != "segments":
            job_settings["masks"] = settings.masks.model_dump(mode="json")
        config = self._output / f"{id}.yaml"
        config.write_text(yaml.safe_dump(job_settings), encoding="utf-8")
        output = self._output / id
        command = [*self._command, "--config", str(config), str(path), str(output)]
        with (self._output / f"{id}.log").open("wb") as log:
            process = subprocess.Popen(  # noqa: S603 - the command is fixed; the path of the request has been checked
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment
            )
        return _RunningJob(path, output, int(time.time()), process)


def _read_num_rows(output: Path) -> int | None:
    try:
        num_rows = json.loads((output / "run.json").read_text(encoding="utf-8"))["totals"]["num_images"]
    except (OSError, ValueError, KeyError, TypeError):  # not written yet
        return None
    return num_rows if isinstance(num_rows, int) else None

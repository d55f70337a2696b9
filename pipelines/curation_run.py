"""``curate`` as a batch verb."""

from collections.abc import Callable

import pyarrow as pa

from pipelines.batch_run import BatchVerb, run_batch
from pipelines.chat_application import chat_application
from pipelines.curate import graph
from pipelines.curate_rehearsal import curate_rehearsal
from pipelines.estimate import estimate
from pipelines.progress import Progress
from ureca.corpus.listing import list_images
from ureca.curation.prompts import VERSION as PROMPTS_VERSION
from ureca.dataset import UnitReport
from ureca.fingerprints import named
from ureca.schema import REGIONS_DATASET
from ureca.settings.curate import CurateSettings

# How a model is reached makes no other captions; what a checkpoint is, its content tells.
REACHING_AN_MLLM = frozenset(
    {
        *("mllm.base_urls", "mllm.api_key_variable", "mllm.api_key_file", "mllm.max_concurrency", "mllm.max_attempts"),
        *("mllm.connect_timeout_s", "mllm.answer_timeout_s", "mllm.first_wait_s", "mllm.max_wait_s"),
        *("mllm.max_outage_s", "mllm.max_answer_bytes", "mllm.seconds_per_answer"),
        *("mllm.device", "mllm.max_batch_size", "mllm.tensor_parallel_size", "mllm.gpu_memory_utilization"),
        *("mllm.min_replicas", "mllm.max_replicas", "mllm.requests_per_replica", "mllm.accelerator_type", "mllm.port"),
    }
)
"""How a model is reached, and what it runs on, makes no other answers."""

_MAY_CHANGE = REACHING_AN_MLLM | {"proposals.checkpoint", "embedder.checkpoint", "mllm.checkpoint"}


def curate(
    settings: CurateSettings, on_plan: Callable[[int, int], None], progress_of: Callable[[int], Progress] = Progress
) -> UnitReport:
    """Curate what is missing in the output, and, if asked for, again what failed; see ``run_batch``."""
    return run_batch(_CURATE, settings, on_plan, progress_of, _identity(settings))


def plan(settings: CurateSettings) -> str:
    """What ``curate`` would take, as lines for people; nothing is started, and nothing written.

    Raises:
        InputError: there is nothing to read, or nothing to do.
    """
    return estimate(_CURATE, settings, curate_rehearsal(settings), "curate")


def _identity(settings: CurateSettings) -> dict[str, str]:
    """What the settings only name: prompts, and checkpoints by their content."""
    sections = {"proposals": settings.proposals, "embedder": settings.embedder, "mllm": settings.mllm}
    checkpoints = {
        f"{name}.checkpoint": named(checkpoint)
        for name, section in sections.items()
        if (checkpoint := getattr(section, "checkpoint", None)) is not None
    }
    return {"prompts": PROMPTS_VERSION, **checkpoints}


def _list_input(settings: CurateSettings) -> pa.Table:
    return list_images(settings.input, **settings.listing.model_dump())


_CURATE = BatchVerb(
    name="curate",
    dataset=REGIONS_DATASET,
    list_input=_list_input,
    graph=graph,
    within=chat_application,
    may_change=_MAY_CHANGE,
    packages=("scikit-image",),
)

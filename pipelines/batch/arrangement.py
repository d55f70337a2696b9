"""The actors, slots and limits that a batch command would get on a cluster, for its simulation."""

import math
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel

from ureca.captioning.settings import CaptioningEndpoints
from ureca.llm.settings import OpenAIConfig, RayServeConfig, TransformersConfig, VllmConfig
from ureca.ops.forecast import partition_sizes
from ureca.ops.simulator import Arrangement
from ureca.pipelines.batch.resources import Cluster, Work, engine_share, plan_pools
from ureca.pipelines.settings import PlannableSettings
from ureca.registry import ComponentConfig

_UNLIMITED = 2**62

Settings = TypeVar("Settings", bound=BaseModel)


@dataclass(frozen=True)
class EngineSlots:
    """The chat model of a run, as a number of slots.

    Attributes:
        slots: answers that it writes at a time, over all its servers; None: of each actor, where it has its own.
        slots_per_actor: answers that the model of each actor writes at a time; ``math.inf``: the settings do not limit
            them.
        concurrency: requests in flight at an engine that all actors share; None: its limit is its own.
    """

    slots: float | None = None
    slots_per_actor: float = math.inf
    concurrency: int | None = None

    def slots_of(self, num_actors: int) -> float:
        """Return the answers that are written at a time for so many actors; ``math.inf``: unknown."""
        return self.slots_per_actor * num_actors if self.slots is None else self.slots

    @classmethod
    def of_settings(cls, mllm: ComponentConfig) -> "EngineSlots":
        """Read the slots off the settings of a chat model."""
        match mllm:
            case OpenAIConfig():
                concurrency = engine_concurrency(mllm)
                return cls(slots=concurrency, concurrency=concurrency)
            case RayServeConfig():
                return cls(slots=mllm.max_replicas * mllm.requests_per_replica)
            case TransformersConfig():
                return cls(slots_per_actor=mllm.max_batch_size)
            case VllmConfig():
                return cls(slots_per_actor=float(mllm.engine_options.get("max_num_seqs", math.inf)))
        return cls()


def engine_concurrency(mllm: ComponentConfig) -> int | None:
    """Return the requests that an engine shared by all actors serves at a time; None if each actor has its own."""
    return mllm.max_concurrency * len(mllm.base_urls) if isinstance(mllm, OpenAIConfig) else None


def with_actor_share(settings: Settings, num_actors: int, section: str = "mllm") -> Settings:
    """Divide the concurrency that a section of the settings allows at endpoints among the actors, as they begin."""
    endpoints = getattr(settings, section, None)
    if not isinstance(endpoints, OpenAIConfig | CaptioningEndpoints):
        return settings
    share = {"max_concurrency": engine_share(endpoints.max_concurrency, num_actors)}
    return settings.model_copy(update={section: endpoints.model_copy(update=share)})


def arrange(
    settings: PlannableSettings,
    stage: str,
    num_images: int,
    engine: EngineSlots,
    *,
    pixels_per_image: float,
    num_cpus: float,
    num_gpus: float,
) -> Arrangement:
    """Plan the pools of a command, as a session of it would.

    Args:
        settings: settings of the command.
        stage: name of the actors that make the rows, and of their section in ``settings.resources``.
        num_images: number of images to process.
        engine: chat model of the run.
        pixels_per_image: mean size of a decoded image in pixels.
        num_cpus: CPUs of the cluster, at least 1.
        num_gpus: GPUs of the cluster.

    Raises:
        SettingsError: the operators cannot run side by side on the cluster.
    """
    sizes = partition_sizes(num_images, settings.images_per_partition)
    resources: Any = settings.resources  # each command has a type of its own
    own, tree = getattr(resources, stage), getattr(resources, "tree", None)
    cluster = Cluster(num_cpus, num_gpus, may_grow=False)
    work = Work(len(sizes), num_images)
    pools = plan_pools(resources, work, cluster, engine.concurrency)
    pool = pools[stage]
    num_mask_actors, num_actors = pools["masks"].num_actors, pool.num_actors
    free_cpus = num_cpus - num_mask_actors * resources.masks.num_cpus - num_actors * own.num_cpus
    fitting = int(getattr(own, "pixels_in_flight", _UNLIMITED) / max(1.0, pixels_per_image))
    per_actor = engine.slots_per_actor
    if engine.concurrency is not None:
        per_actor = engine_share(engine.concurrency, num_actors)
    return Arrangement(
        cpus=num_cpus,
        mask_actors=num_mask_actors,
        masks_on_cpu=not resources.masks.num_gpus,
        tree_tasks=1 if tree is None else max(1, int(free_cpus / tree.num_cpus)),
        row_actors=num_actors,
        stage=stage,
        partitions_in_flight=pool.calls_in_flight(work) or 1,
        images_in_flight=max(1, min(pool.images_in_flight or 1, fitting)),
        requests_per_actor=per_actor,
        engine_slots=engine.slots_of(num_actors),
    )

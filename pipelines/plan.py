"""What ``curate`` would run on, for its simulation: the pools and limits that its graph gets there."""

import math

from ureca.llm.ray_serve import RayServeConfig
from ureca.llm.transformers import TransformersConfig
from ureca.ops.forecast import partition_sizes
from ureca.ops.simulator import Arrangement
from ureca.pipelines.batch.resources import Work, engine_share, images_in_flight, plan_pools
from ureca.pipelines.batch.session import Cluster
from ureca.pipelines.curate import engine_concurrency
from ureca.pipelines.curate_settings import CurateSettings


def arrangement_of(
    settings: CurateSettings,
    num_images: int,
    *,
    pixels_per_image: float,
    num_cpus: float,
    num_gpus: float,
    engine_slots: int | None = None,
) -> Arrangement:
    """What a run would have.

    Args:
        settings: of the run.
        num_images: that it has to do.
        pixels_per_image: of a decoded one.
        num_cpus: of the cluster, at least 1.
        num_gpus: of the cluster.
        engine_slots: answers that the chat model writes at a time, over all its servers; None: as many as the
            settings let be asked for.

    Raises:
        SettingsError: the stages cannot run side by side there.
    """
    sizes = partition_sizes(num_images, settings.images_per_partition)
    resources, concurrency = settings.resources, engine_concurrency(settings.mllm)
    cluster = Cluster(num_cpus, num_gpus, may_grow=False)
    generate, curate = plan_pools(resources, Work(len(sizes), num_images), cluster, concurrency)
    num_mask_actors, num_curate = generate.initial_size or 1, curate.initial_size or 1
    held_cpus = num_mask_actors * resources.masks.num_cpus + num_curate * resources.curate.num_cpus
    images = images_in_flight(resources.curate, num_curate, concurrency)
    fitting = int(resources.curate.pixels_in_flight / max(1.0, pixels_per_image))
    per_actor: float = math.inf
    if concurrency is not None:
        per_actor = engine_share(concurrency, num_curate)
    elif isinstance(settings.mllm, TransformersConfig):
        per_actor = settings.mllm.max_batch_size
    slots: float = concurrency or per_actor * num_curate
    if isinstance(settings.mllm, RayServeConfig):
        slots = settings.mllm.max_replicas * settings.mllm.requests_per_replica
    return Arrangement(
        cpus=num_cpus,
        mask_actors=num_mask_actors,
        proposes_on_cpu=not resources.masks.num_gpus,
        tree_tasks=max(1, int((num_cpus - held_cpus) / resources.tree.num_cpus)),
        curate_actors=num_curate,
        partitions_in_flight=curate.max_concurrent_calls_per_actor or 1,
        images_in_flight=max(1, min(images, fitting)),
        requests_per_actor=per_actor,
        engine_slots=engine_slots or slots,
    )

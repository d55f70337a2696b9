"""Routing of requests by their image: on rankings alone, and on replicas of Ray Serve."""

import asyncio
import os
import signal
from collections import Counter

import numpy as np
from ray import serve
from ray.serve._private.common import DeploymentHandleSource, DeploymentID, RequestMetadata
from ray.serve.request_router import PendingRequest, ReplicaID

from ureca.pipelines.serving.deployments import _BY_IMAGE
from ureca.pipelines.serving.routing import image_key, rank_replicas

IDS = [ReplicaID(f"replica{number}", DeploymentID("captioner", "ureca")) for number in range(5)]
KEYS = [f"image {number}" for number in range(1000)]


def test_rank_replicas_spreads_keys_and_moves_only_those_of_a_lost_replica() -> None:
    ranked = {key: rank_replicas(key, IDS) for key in KEYS}
    shares = Counter(ranks[0].unique_id for ranks in ranked.values())
    assert len(shares) == 5 and min(shares.values()) > 120 and max(shares.values()) < 280
    for key, ranks in ranked.items():
        assert rank_replicas(key, IDS[::-1]) == ranks
        assert rank_replicas(key, IDS[1:]) == [id for id in ranks if id != IDS[0]]


def test_image_key_is_of_the_content_and_costs_little() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (600, 900, 3), dtype=np.uint8)
    assert image_key(pixels) == image_key(pixels.copy())
    assert image_key(pixels) != image_key(255 - pixels)
    assert image_key(pixels) != image_key(pixels.reshape(900, 600, 3))
    assert image_key(np.zeros((1, 1, 3), np.uint8)) != image_key(np.zeros((1, 2, 3), np.uint8))


class Replica:
    """A replica as a router sees it, with a queue of some length."""

    def __init__(self, id: ReplicaID) -> None:
        self.replica_id, self.actor_id, self.node_id, self.availability_zone = id, id.unique_id, "node", "zone"
        self.max_ongoing_requests, self.num_ongoing = 64, 0
        self.multiplexed_model_ids: set[str] = set()

    async def get_queue_len(self, *, deadline_s: float) -> int:
        return self.num_ongoing


def test_router_prefers_the_replica_of_an_image_unless_it_is_much_busier() -> None:
    async def run() -> None:
        replicas = [Replica(id) for id in IDS]
        router = _BY_IMAGE.get_request_router_class()(
            IDS[0].deployment_id, DeploymentHandleSource.REPLICA, use_replica_queue_len_cache=True
        )
        router.update_replicas(replicas)

        async def order(key: str) -> list[str]:
            metadata = RequestMetadata("request", "internal", session_id=key)
            ranks = await router.choose_replicas(replicas, PendingRequest([], {}, metadata))
            return [replica.replica_id.unique_id for rank in ranks for replica in rank]

        usual = await order("an image")
        assert usual == [id.unique_id for id in rank_replicas("an image", IDS)]
        busiest = next(id for id in IDS if id.unique_id == usual[0])
        for id in IDS:
            router.replica_queue_len_cache.update(id, 2)
        router.replica_queue_len_cache.update(busiest, 7)
        assert await order("an image") == usual
        router.replica_queue_len_cache.update(busiest, 8)
        assert await order("an image") == [*usual[1:], usual[0]]
        assert sorted(await order("")) == sorted(usual)

    asyncio.run(run())


@serve.deployment(num_replicas=3, ray_actor_options={"num_cpus": 0}, request_router_config=_BY_IMAGE)
class Process:
    """Replies with the process of the replica."""

    async def id(self) -> int:
        return os.getpid()


def test_requests_for_one_image_go_to_one_replica(ray_cluster: None) -> None:
    handle = serve.run(Process.bind(), name="routing", route_prefix="/routing")

    def replica(key: str) -> int:
        return int(handle.options(session_id=key).id.remote().result(timeout_s=120))

    try:
        first = {key: replica(key) for key in KEYS[:24]}
        assert {key: replica(key) for key in first} == first
        assert len(set(first.values())) == 3
        assert {int(handle.id.remote().result(timeout_s=120)) for _ in range(3)} <= set(first.values())
        lost = next(iter(first.values()))
        os.kill(lost, signal.SIGKILL)
        answered = 0
        for key, process in first.items():
            if process != lost:
                assert replica(key) == process
                answered += 1
        assert answered
    finally:
        serve.delete("routing")

"""Routing of the requests for one image to the replica that has it."""

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from ureca.hashing import digest
from ureca.images import Pixels

_LOAD_FACTOR = 1.5
_MIN_LOAD = 4
"""A replica whose queue is longer than this many times the shortest one, and this many requests, is passed over."""

_MAX_SAMPLES = 4096


def image_key(pixels: Pixels) -> str:
    """Return a key of an image for ``ImageRouter``: the hash of its shape and of up to 4096 of its pixels.

    Images that differ elsewhere only have one key, and so share a replica, which is harmless.
    """
    height, width = pixels.shape[:2]
    step = max(1, int((height * width / _MAX_SAMPLES) ** 0.5))
    return digest([f"{height} x {width}", pixels[::step, ::step]]).hex()


def rank_replicas(key: str, replica_ids: list[ReplicaID]) -> list[ReplicaID]:
    """Return replicas in the order of their weights for a key (rendezvous hashing).

    Without the first one, the order of the others stays; so a replica that is added or lost moves its own keys only.
    """

    def weight(replica_id: ReplicaID) -> bytes:
        return digest([f"{key} {replica_id.unique_id}"], num_bytes=8)

    return sorted(replica_ids, key=weight, reverse=True)


class ImageRouter(RequestRouter):
    """Routes requests with the same session id, an ``image_key``, to the same replica, by rendezvous hashing.

    A replica has the masks and features of its latest images in its caches, and shares equal work that is in flight.
    One with a much longer queue than another is passed over, so that no popular image waits while replicas are idle.
    Requests without a session id go to the replica with the shortest queue.
    """

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return the replicas in the order in which they are asked."""
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True
        key = pending_request.metadata.session_id
        if not key:
            return [candidate_replicas]
        by_id = {replica.replica_id: replica for replica in candidate_replicas}
        ranked = rank_replicas(key, list(by_id))
        lengths = {id: self.replica_queue_len_cache.get(id) or 0 for id in ranked}
        limit = _LOAD_FACTOR * min(lengths.values(), default=0) + _MIN_LOAD
        ranked.sort(key=lambda id: lengths[id] > limit)  # stable
        return [[by_id[id]] for id in ranked]

"""Whether Ray works here: the cluster that is there, or one of its own."""

import ray
from ray.exceptions import RayError

from pipelines.session import ray_session
from ureca.operations.doctor import Finding, Level

_PATIENCE_S = 60.0


@ray.remote(num_cpus=0.5)
def _answer() -> str:
    import ureca

    return ureca.__version__


def check_ray() -> Finding:
    """Connect, run a task, and say what there is to run on."""
    from ureca import __version__

    try:
        with ray_session() as cluster:
            found: str = ray.get(_answer.remote(), timeout=_PATIENCE_S)
            nodes = len([node for node in ray.nodes() if node["Alive"]])  # type: ignore[no-untyped-call]
    except (RayError, ConnectionError, RuntimeError, OSError) as error:
        remedy = (
            "look at what is above and at the logs in /tmp/ray/session_latest/logs; RAY_ADDRESS and RAY_AUTH_TOKEN "
            "must be those of a running cluster, or unset"
        )
        return Finding(name="Ray", level=Level.PROBLEM, value=f"a task did not run: {error}", remedy=remedy)
    what = "the cluster" if cluster.may_grow else "this machine"
    value = (
        f"{ray.__version__}, a task ran on {what}: {nodes} nodes, {cluster.num_cpus:g} CPUs, {cluster.num_gpus:g} GPUs"
    )
    if found != __version__:
        remedy = "workers have another version than this machine: submit with --working-dir, or build the image anew"
        return Finding(
            name="Ray", level=Level.PROBLEM, value=f"{value}; ureca {found} there, {__version__} here", remedy=remedy
        )
    return Finding(name="Ray", level=Level.OK, value=value)

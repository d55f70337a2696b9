"""`ureca bench serve`: throughput of the service in requests/s with dynamic batching, against a batch size of one.

Both sides are the whole service (proxy, ingress, captioner) with the same random model, one after the other, under the
load of the same clients, each of which waits for its response before it sends the next request. Every request has a
different image, so that requests share no work. Captions are so long that prefill takes about a tenth of the time of
decoding, as with a model of billions of weights on a GPU.
"""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.processes import ProcessTree
from benchmarks.service_load import TimedResponse, keep_busy, request_body, running_service

_SIDE_PX = 112
_CAPTIONER, _INGRESS, _PROXY = "ServeReplica:ureca:captioner", "ServeReplica:ureca:ingress", "ProxyActor"
_ROLES = (_CAPTIONER, _INGRESS, _PROXY)


@dataclass(frozen=True)
class ServiceRate:
    """The measurements of one side.

    Attributes:
        batch_size: batch size of the captioner.
        num_answers: number of responses in the measured time, in which all clients were busy.
        wall_s: the measured time.
        latencies_s: latency of each of these responses.
        cpu_s: CPU seconds of all requests, by role.
        num_requests: number of all requests.
        captions: captions by the number of the request's body.
    """

    batch_size: int
    num_answers: int
    wall_s: float
    latencies_s: Sequence[float]
    cpu_s: Mapping[str, float]
    num_requests: int
    captions: Mapping[int, str]

    @property
    def requests_per_s(self) -> float:
        """Throughput in the measured time."""
        return self.num_answers / self.wall_s


def main(argv: list[str]) -> int:
    """Run the benchmark and print its table.

    Returns:
        0, or 1 if the two sides disagree on a caption.
    """
    arguments = _parser().parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        return _run(Path(folder), arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ureca bench serve", description=__doc__)
    parser.add_argument("--clients", type=int, default=32, help="number of clients (default 32)")
    parser.add_argument(
        "--requests", type=int, default=320, help="number of requests with dynamic batching (default 320)"
    )
    parser.add_argument(
        "--baseline-requests", type=int, default=96, help="number of requests with a batch size of one (default 96)"
    )
    parser.add_argument("--batch-size", type=int, default=32, help="largest batch with dynamic batching (default 32)")
    parser.add_argument("--new-tokens", type=int, default=128, help="number of tokens of each caption (default 128)")
    parser.add_argument("--width", type=int, default=512, help="width of the language model (default 512)")
    parser.add_argument("--layers", type=int, default=4, help="number of layers of the language model (default 4)")
    parser.add_argument("--gpus", type=float, default=0.0, help="GPUs of the captioner; 0 runs on the CPU")
    parser.add_argument("--port", type=int, default=18931, help="port of the service (default 18931)")
    return parser


def _run(folder: Path, arguments: argparse.Namespace) -> int:
    _write_model(folder / "model", arguments)
    number = max(arguments.requests, arguments.baseline_requests)
    bodies = [_body(seed, arguments.new_tokens) for seed in range(number)]
    print(
        f"{arguments.clients} clients, an image of {_SIDE_PX} x {_SIDE_PX} pixels and a region a request, "
        f"{arguments.new_tokens} new tokens, {'GPU' if arguments.gpus else 'CPU, one thread a process'}",
        flush=True,
    )
    print("\n| batch size | requests/s | median s | 95 % s | CPU s a request: captioner | ingress | proxy |")
    print("|---|---|---|---|---|---|---|")
    one = _measure(folder, 1, bodies[: arguments.baseline_requests], arguments)
    common = _measure(folder, arguments.batch_size, bodies[: arguments.requests], arguments)
    print(f"\n{common.requests_per_s / one.requests_per_s:.1f} times the requests/s of a batch size of one")
    both = one.captions.keys() & common.captions.keys()
    equal = sum(one.captions[number] == common.captions[number] for number in both)
    print(f"captions equal: {equal} of {len(both)}")
    return 0 if equal == len(both) else 1


def _write_model(folder: Path, arguments: argparse.Namespace) -> None:
    from transformers.utils import logging

    from ureca.model.initialization import save_tiny
    from ureca.model.settings import TinySizes

    logging.disable_progress_bar()
    heads = arguments.width // 64
    sizes = TinySizes(
        image_size=_SIDE_PX,
        max_tiles=1,
        width=arguments.width,
        layers=arguments.layers,
        heads=heads,
        key_value_heads=max(1, heads // 4),
        mlp_width=4 * arguments.width,
    )
    save_tiny(folder, sizes)


def _body(seed: int, new_tokens: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (_SIDE_PX, _SIDE_PX, 3), dtype=np.uint8)
    inside = np.zeros((_SIDE_PX, _SIDE_PX), np.bool_)
    top, left = random.integers(0, _SIDE_PX // 2, 2)
    inside[top : top + 40, left : left + 40] = True
    return request_body(pixels, [inside], max_new_tokens=new_tokens)


def _measure(
    folder: Path, batch_size: int, bodies: Sequence[Mapping[str, Any]], arguments: argparse.Namespace
) -> ServiceRate:
    num_clients, num_requests = arguments.clients, len(bodies)
    settings = [
        *("--model", str(folder / "model"), "--captioner.batch-size", str(batch_size)),
        *("--captioner.max-new-tokens", str(arguments.new_tokens), "--limits.timeout-s", "600"),
        *("--limits.max-in-flight", str(2 * num_clients), "--resources.captioner.num-gpus", str(arguments.gpus)),
        *("--resources.captioner.max-ongoing-requests", str(2 * num_clients)),
    ]
    with running_service(settings, arguments.port, folder / "log") as service:
        processes = ProcessTree(service.pid, _ROLES)
        before = processes.sample()
        answers = keep_busy(f"http://127.0.0.1:{arguments.port}", bodies, num_requests, num_clients)
        after = processes.sample()
    failed = [answer for answer in answers if answer.status != 200]
    if failed:
        raise RuntimeError(f"{len(failed)} requests failed, the first with status {failed[0].status}: {failed[0].body}")
    rate = _rate(batch_size, answers, num_clients, {role: after[role] - before.get(role, 0.0) for role in after})
    cpu_s = [rate.cpu_s.get(role, 0.0) / num_requests for role in _ROLES]
    print(
        f"| {batch_size} | {rate.requests_per_s:.2f} | {np.median(rate.latencies_s):.2f} | "
        f"{np.quantile(rate.latencies_s, 0.95):.2f} | {cpu_s[0]:.3f} | {cpu_s[1]:.3f} | {cpu_s[2]:.3f} |",
        flush=True,
    )
    return rate


def _rate(
    batch_size: int, answers: Sequence[TimedResponse], num_clients: int, cpu_s: Mapping[str, float]
) -> ServiceRate:
    # All clients are busy from the first response of each until the first client has no further request.
    measured = answers[num_clients : len(answers) - num_clients + 1]
    return ServiceRate(
        batch_size,
        len(measured),
        measured[-1].answered_s - answers[num_clients - 1].answered_s,
        [answer.answered_s - answer.sent_s for answer in measured],
        cpu_s,
        len(answers),
        {answer.number: answer.body["captions"][0]["caption"] for answer in answers},
    )

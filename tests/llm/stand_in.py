"""A stand-in for hosted services in trouble, in a thread: the first part of the path names the kind of trouble."""

import asyncio
import gzip
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from tests.llm.chat_server import ChatServer, Received, Said, completion, error, json_body

USAGE = {"prompt_tokens": 9, "completion_tokens": 9}


def choice(content: object, finish_reason: str = "stop", usage: object = USAGE, **message: Any) -> Said:
    """A completion with any content."""
    message = {"role": "assistant", "content": content, **message}
    return json_body(200, {"choices": [{"message": message, "finish_reason": finish_reason}], "usage": usage})


def caption_for(received: Received) -> str:
    """A caption of its own for each question, as a JSON object."""
    digest = int.from_bytes(hashlib.blake2b(json.dumps(received.body).encode(), digest_size=6).digest(), "big")
    colors, things = ("red", "blue", "green", "grey", "brown"), ("board", "wheel", "window", "panel", "stone", "lamp")
    places = ("by the wall", "near the gate", "under the roof", "along the path", "at the corner", "in the shade")
    color, thing, place = (each[digest // 10**power % len(each)] for power, each in enumerate((colors, things, places)))
    return json.dumps({"caption": f"A {color} {thing} {place}, number {digest % 10**9} of its series."})


def wrapped(text: str, number: int) -> Said:
    """The same answer in the wrappings and after the failures of many servers, one after another."""
    thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}
    forms = (
        completion(text),
        choice([thinking, {"type": "text", "text": text}]),
        Said(200, b"\xef\xbb\xbf" + completion(text).body),
        Said(200, gzip.compress(completion(text).body), {"Content-Encoding": "gzip"}),
        choice(text, usage={"prompt_tokens": -1, "completion_tokens": 2.0}),
        error(409, "the model is being loaded"),
        error(425, "too early"),
        json_body(200, {"error": {"message": "Upstream provider is rate limited", "code": 429}}),
    )
    return forms[number % len(forms)]


def refusal(kind: str, received: Received, number: int) -> Said | None:
    """The refusal of a question by a kind of server; None: it answers.

    Args:
        kind: kind of the trouble.
        received: the question.
        number: number of the question, from 1.
    """
    body, images = received.body, received.images
    quota = {"message": "You exceeded your current quota", "code": "insufficient_quota"}
    limited = {"message": "Upstream provider is rate limited", "code": 429}
    if kind == "new_parameter" and "max_tokens" in body:
        return error(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
    refuses, said = {
        "credits": (True, error(402, "Insufficient credits. Add more.")),
        "forbidden": (True, error(403, "Project has no access to this model")),
        "quota": (True, json_body(429, {"error": quota})),
        "new_parameter": (body.get("temperature", 1) != 1, error(400, "Unsupported value: 'temperature' is not 1")),
        "no_schema": ("response_format" in body, error(400, "response_format type json_schema is unavailable now")),
        "one_image": (len(images) > 1, error(400, "At most 1 image(s) may be provided in one prompt.")),
        "real_images": (images[0].shape != (64, 64, 3), error(422, "such images are not available in your plan")),
        "model": (body["model"] != "tiny-vl", error(404, f"The model {body['model']} does not exist.")),
        "limited": (True, json_body(200, {"error": limited})),
        "picky": (number > 1 and number % 2, error(400, "this picture was flagged")),
        "cut": (number > 1, choice(None, "length", reasoning_content="Let me look at the region first")),
    }.get(kind, (False, completion()))
    return said if refuses else None


class StandIn:
    """The server; keeps the number of requests of each kind.

    Attributes:
        calls: number of questions by kind.
        url: address without the kind.
    """

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.url = ""

    async def respond(self, received: Received) -> Said:
        """Answer by the kind."""
        kind = received.path.split("/")[1]
        if received.path.endswith("/models"):
            return json_body(200, {"data": [{"id": "tiny-vl", "max_model_len": 8192}, {"id": "other"}]})
        self.calls[kind] += 1
        if kind == "wrapped":
            return wrapped(caption_for(received), self.calls[kind])
        return refusal(kind, received, self.calls[kind]) or completion(caption_for(received))


Served = TypeVar("Served", bound=StandIn)


@contextmanager
def stand_in(served: Served) -> Iterator[Served]:
    """Serve for the block, in a thread of its own."""
    started, ended = threading.Event(), threading.Event()

    async def serve() -> None:
        async with ChatServer(served.respond) as server:
            served.url = f"http://127.0.0.1:{server.port}"
            started.set()
            await asyncio.to_thread(ended.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    started.wait()
    try:
        yield served
    finally:
        ended.set()
        thread.join()

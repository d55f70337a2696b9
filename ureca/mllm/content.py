"""What a request says, as a number."""

import hashlib

import numpy as np

from ureca.mllm.protocol import ChatRequest


def content_digest(request: ChatRequest) -> int:
    """64 bits that equal requests share, wherever and whenever they are made, and that others do not."""
    hashed = hashlib.blake2b(digest_size=8)
    hashed.update(f"{request.temperature} {request.system}\n{request.text}".encode(errors="surrogatepass"))
    for image in request.images:
        hashed.update(str(image.shape).encode())
        hashed.update(np.ascontiguousarray(image).data)
    return int.from_bytes(hashed.digest(), "big")

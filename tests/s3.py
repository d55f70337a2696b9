"""An S3 on this machine."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

BUCKET = "ureca-test"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@dataclass(frozen=True)
class Store:
    """A bucket, and a client that looks at it behind the back of what is tested."""

    endpoint: str
    client: Any

    def uri(self, name: str) -> str:
        """Return the URI of an object or folder in the bucket."""
        return f"s3://{BUCKET}/{name}?endpoint_override={self.endpoint}&scheme=http"

    def put(self, name: str, data: bytes) -> None:
        """Store an object."""
        self.client.put_object(Bucket=BUCKET, Key=name, Body=data)

    def names(self, below: str = "") -> list[str]:
        """Return the names of all objects, in order."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=below)
        return sorted(item["Key"] for page in pages for item in page.get("Contents", ()))

    def unfinished_uploads(self) -> list[str]:
        """Uploads in parts that somebody has begun and not ended: they cost money, and no listing shows them."""
        return [item["Key"] for item in self.client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", ())]


@contextmanager
def s3_server() -> Iterator[Store]:
    """A server with an empty bucket; whoever uses it has ``CREDENTIALS`` in the environment."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in CREDENTIALS.items():
                patch.setenv(name, value)
            client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
            client.create_bucket(Bucket=BUCKET)
            yield Store(f"{host}:{port}", client)
    finally:
        server.stop()

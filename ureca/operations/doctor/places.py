"""Whether folders and URIs can be written to and read from, by doing it."""

import uuid
from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.fs as pafs

from ureca.corpus.storage import locate
from ureca.dataset import storage
from ureca.errors import InputError, OutputError
from ureca.operations.doctor.finding import Finding, Level

_CONTENT = b"ureca doctor was here"
_REMEDIES = {
    "": "use a folder that this user may write to, or have its owner allow it",
    "s3": "give credentials and region by AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION, or by a role that "
    "may list, read, write and delete in this bucket; for another server than AWS's add ?endpoint_override=HOST:PORT",
    "gs": "give credentials by GOOGLE_APPLICATION_CREDENTIALS, or by a role that may list, read, write and delete here",
}


def check_places(paths: Iterable[str]) -> Iterator[Finding]:
    """Write a small file to each, read it again and remove it."""
    for path in paths:
        scheme = path.partition("://")[0] if "://" in path else ""
        try:
            _write_and_read(path)
        except (OSError, pa.ArrowException, InputError, OutputError) as error:
            remedy = _REMEDIES.get(scheme, "see that the place exists and that this user may write to it")
            yield Finding(name="write access", level=Level.PROBLEM, value=f"{path}: {error}", remedy=remedy)
        else:
            yield Finding(name="write access", level=Level.OK, value=path)


def _write_and_read(path: str) -> None:
    place = locate(path)
    was_there = place.filesystem.get_file_info(place.name).type != pafs.FileType.NotFound
    name = f"{place.name}/.ureca-doctor-{uuid.uuid4().hex}"
    storage.write_bytes(place.filesystem, name, _CONTENT)
    try:
        with place.filesystem.open_input_stream(name) as stream:
            if stream.read() != _CONTENT:
                raise OSError("what was read is not what had been written")
    finally:
        place.filesystem.delete_file(name)
        if not was_there:
            place.filesystem.delete_dir(place.name)

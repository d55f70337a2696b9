"""Server of ``ureca view``: the regions of a run as a web page on this machine, and the journal of corrections.

It listens on loopback only. Every path begins with a random token, requests with a foreign ``Host`` or ``Origin`` are
refused, and the page loads nothing from elsewhere.
"""

import hmac
import io as stdio
import json
import logging
import secrets
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import asdict
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import parse_qs, urlsplit

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image, ImageFilter
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ureca import io, parquet
from ureca.data.corrections import Correction, Journal
from ureca.data.manifest import ManifestEntry
from ureca.data.output import Output, as_regions_row
from ureca.data.reading import fetch
from ureca.errors import DataError, OutputError, UrecaError
from ureca.html import read_asset
from ureca.image_limits import ImageLimits
from ureca.images import try_decode_image
from ureca.masks import rle as rle_codec
from ureca.masks.mask import Mask
from ureca.report.panels import image_panel
from ureca.report.view_index import FoundRegion, Query, ViewIndex, open_index
from ureca.schema import REGIONS_DATASET

logger = logging.getLogger(__name__)

MAX_PAGE_SIZE = 200
"""Largest number of regions in a page of results."""

_MAX_BODY_BYTES = 65_536
_MAX_SIDE_PX = 1600
_CROP_PX = 224
_OUTLINE_RGB = (255, 190, 50)
_CROP_MARGIN = 1.4
_NUM_CACHED_IMAGES = 24
_NUM_CACHED_PARTS = 8
_NUM_DECODERS = 2
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_ASSETS = {
    "": ("ureca.report", "view.html"),
    "viewer.css": ("ureca.serving", "page", "viewer.css"),
    "page.css": ("ureca.report", "page.css"),
    "view.css": ("ureca.report", "view.css"),
    "viewer.js": ("ureca.serving", "page", "viewer.js"),
    "panels.js": ("ureca.report", "panels.js"),
    "view.js": ("ureca.report", "view.js"),
    "review.js": ("ureca.report", "review.js"),
    "icon.svg": ("ureca.serving", "page", "icon.svg"),
}
_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}

T = TypeVar("T")


class _Page(BaseModel):
    """Parameters of a page of results."""

    model_config = ConfigDict(extra="forbid")

    query: Query = Query()
    version: int = Field(default=0, ge=0)
    offset: int = Field(default=0, ge=0)
    limit: int = Field(default=60, ge=1, le=MAX_PAGE_SIZE)


class _Decision(BaseModel):
    """A correction as the page sends it."""

    model_config = ConfigDict(extra="forbid")

    position: int = Field(ge=0)
    action: Literal["correct", "reject", "accept", "restore"]
    caption: str | None = None
    reason: str | None = None


class RunView:
    """Everything that the page shows of a run.

    Args:
        output: output of the run.
        index: index of its regions.

    Attributes:
        is_writable: False if the output is not on this machine, so that nothing can be corrected.
    """

    def __init__(self, output: Output, index: ViewIndex) -> None:
        self.index = index
        self._output = output
        location = io.locate(output.path)
        self.is_writable = bool(location.is_local)
        self._journal = Journal(Path(location.name)) if self.is_writable else None
        self._title = output.path.rstrip("/").rpartition("/")[2] or output.path
        self._paths = output.parts()
        self._chunks: dict[int, tuple[str, int]] | None = None
        self._cache: OrderedDict[Hashable, Any] = OrderedDict()
        self._lock = threading.Lock()
        self._decoders = threading.Semaphore(_NUM_DECODERS)
        self._writing = threading.Lock()

    @classmethod
    def of_run(cls, path: str, cache: Path | None = None) -> "RunView":
        """Open the view of a run; arguments and errors as in ``open_index``."""
        output = Output.of_run(path)
        return cls(output, open_index(output, cache))

    def summary(self) -> dict[str, Any]:
        """Return the figures of the whole run."""
        return {
            "title": self._title,
            "num_images": self.index.num_images,
            "num_regions": self.index.num_regions,
            "num_failed_images": self.index.num_failed_images,
            "is_writable": self.is_writable,
        }

    def page(self, parameters: _Page) -> dict[str, Any]:
        """Return a page of a result: the number of all its regions, and some of them."""
        found = self.index.find(parameters.query, parameters.version)
        part = found[parameters.offset : parameters.offset + parameters.limit]
        return {"total": len(found), "regions": [_json(region) for region in self.index.regions(part)]}

    def image(self, image: int) -> dict[str, Any]:
        """Return an image with its regions, their outlines and corrections."""
        row = self._row(image)
        corrections = {
            int(found.region_id): found for found in self.index.regions(list(self.index.positions_of(image)))
        }
        regions = []
        for region in row["regions"]:
            correction = corrections[region["region_id"]].correction
            regions.append(region if correction is None else correction.apply(region))
        panel = image_panel({**row, "regions": regions}, DataError("not_loaded", "")) | {"problem": None}
        for region in panel["regions"]:
            region["position"] = corrections[region["id"]].position
        return panel

    def picture(self, image: int) -> bytes:
        """Return the picture of an image as a JPEG, at most 1600 pixels large.

        Raises:
            DataError: the image cannot be read.
        """
        return _jpeg(self._pixels(image))

    def crop(self, position: int) -> bytes:
        """Return a region, outlined, with its surroundings, which are darkened, as a JPEG; errors as ``picture``.

        The picture is square, or flatter where the image does not reach so far around the region.
        """
        image = int(self.index.regions([position])[0].image)
        region_id = self.index.regions([position])[0].region_id
        row = self._row(image)
        region = next(region for region in row["regions"] if region["region_id"] == region_id)
        pixels = self._pixels(image)
        mask = Mask.from_region(region, row["height"], row["width"])
        scale = pixels.shape[1] / row["width"]
        x, y, width, height = rle_codec.box_xywh(mask.rle)
        side = max(width, height, 8) * _CROP_MARGIN
        width_px, height_px = (min(side, length) for length in (row["width"], row["height"]))
        left = min(max(x + width / 2 - width_px / 2, 0), row["width"] - width_px)
        top = min(max(y + height / 2 - height_px / 2, 0), row["height"] - height_px)
        box = (left, top, left + width_px, top + height_px)
        longest = max(width_px, height_px)
        size = max(1, round(_CROP_PX * width_px / longest)), max(1, round(_CROP_PX * height_px / longest))
        scaled = tuple(edge * scale for edge in box)
        crop = Image.fromarray(pixels).transform(size, Image.Transform.EXTENT, scaled, Image.Resampling.BILINEAR)
        inside = Image.fromarray(rle_codec.decode(mask.rle)).convert("L")
        inside = inside.transform(size, Image.Transform.EXTENT, box, Image.Resampling.NEAREST)
        is_inside = np.asarray(inside)[..., None] > 0
        is_near = np.asarray(inside.filter(ImageFilter.MaxFilter(3)))[..., None] > 0
        # the shade alone does not show where a dark region ends
        surroundings = np.where(is_near, _OUTLINE_RGB, np.asarray(crop) * 0.35)
        return _jpeg(np.where(is_inside, np.asarray(crop), surroundings).astype(np.uint8))

    def correct(self, decision: _Decision) -> dict[str, Any]:
        """Write a decision about a region to the journal; returns the region.

        Raises:
            OutputError: the journal cannot be written to, or the output is not on this machine.
            ValidationError: the decision is invalid.
        """
        if self._journal is None:
            raise OutputError("nothing can be corrected in an output elsewhere; copy it to this machine first")
        region = self.index.regions([decision.position])[0]
        with self._writing:
            correction = Correction(
                image_id=region.image_id,
                region_id=region.region_id,
                action=decision.action,
                caption=decision.caption,
                reason=decision.reason,
                original=self.index.original_caption(decision.position),
            )
            self._journal.append(correction)
            self.index.correct(decision.position, correction)
        return _json(self.index.regions([decision.position])[0])

    def _row(self, image: int) -> dict[str, Any]:
        _, partition, row = self.index.image_place(image)
        path = self._paths[partition]
        table: pa.Table = self._cached(
            ("part", partition), _NUM_CACHED_PARTS, lambda: parquet.read_table(self._output.filesystem, path)
        )
        found: dict[str, Any] = table.slice(row, 1).to_pylist()[0]
        return found if self._output.dataset is REGIONS_DATASET else as_regions_row(found)

    def _pixels(self, image: int) -> npt.NDArray[np.uint8]:
        def read() -> npt.NDArray[np.uint8] | DataError:
            limits = ImageLimits()
            with self._decoders:
                [fetched] = fetch([self._entry(image)], limits)
                pixels = try_decode_image(fetched.image, limits)
            if isinstance(pixels, DataError):
                return pixels
            reduced = Image.fromarray(pixels)
            reduced.thumbnail((_MAX_SIDE_PX, _MAX_SIDE_PX), Image.Resampling.LANCZOS)
            return np.asarray(reduced)

        pixels = self._cached(("pixels", image), _NUM_CACHED_IMAGES, read)
        if isinstance(pixels, DataError):
            raise pixels
        return pixels

    def _entry(self, image: int) -> ManifestEntry:
        image_id, partition, _ = self.index.image_place(image)
        if self._chunks is None:
            self._chunks = {
                number: (path, row_group)
                for path, row_group in self._output.manifest_chunks()
                for number in self._output.read_manifest_chunk(path, row_group)["partition"].to_pylist()
            }
        chunk = self._chunks[partition]
        table: pa.Table = self._cached(
            ("manifest", chunk), _NUM_CACHED_PARTS, lambda: self._output.read_manifest_chunk(*chunk)
        )
        [images] = table.filter(pa.compute.equal(table["partition"], partition))["images"].to_pylist()
        return next(ManifestEntry.from_row(entry) for entry in images if entry["image_id"] == image_id)

    def _cached(self, key: tuple[str, Hashable], size: int, make: Callable[[], T]) -> T:
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                found: T = self._cache[key]
                return found
        made = make()
        with self._lock:
            self._cache[key] = made
            of_kind = [other for other in self._cache if isinstance(other, tuple) and other[0] == key[0]]
            for other in of_kind[: max(0, len(of_kind) - size)]:
                del self._cache[other]
        return made


class ViewServer(ThreadingHTTPServer):
    """HTTP server of a view on loopback.

    Args:
        view: the view.
        port: port; 0: any free one.

    Attributes:
        token: first part of every path.
    """

    daemon_threads = True

    def __init__(self, view: RunView, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.view = view
        self.token = secrets.token_urlsafe(18)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log an error of a handler; a browser that goes away is none."""
        if isinstance(sys.exception(), ConnectionError):
            return
        super().handle_error(request, client_address)

    @property
    def address(self) -> str:
        """URL of the page, with its token."""
        return f"http://127.0.0.1:{self.server_port}/{self.token}/"


class _RequestError(Exception):
    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    server: ViewServer
    protocol_version = "HTTP/1.1"
    timeout = 30
    server_version = "ureca"
    sys_version = ""

    def do_GET(self) -> None:
        self._respond(self._get)

    def do_POST(self) -> None:
        self._respond(self._post)

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug(format, *args)

    def _respond(self, handle: Callable[[str, dict[str, str]], tuple[bytes, str, bool]]) -> None:
        status, is_kept = HTTPStatus.OK, False
        try:
            path, parameters = self._check()
            body, media_type, is_kept = handle(path, parameters)
        except _RequestError as error:
            status, body, media_type = error.status, _error(str(error)), "application/json"
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            where = ".".join(map(str, first["loc"]))
            status, body, media_type = HTTPStatus.BAD_REQUEST, _error(f"{where}: {first['msg']}"), "application/json"
        except (IndexError, KeyError, StopIteration):
            status, body, media_type = (
                HTTPStatus.NOT_FOUND,
                _error("there is no such region or image"),
                "application/json",
            )
        except UrecaError as error:
            status, body, media_type = HTTPStatus.UNPROCESSABLE_ENTITY, _error(str(error)), "application/json"
        if status is not HTTPStatus.OK:
            self.close_connection = True  # the body may not have been read
        self.send_response(status)
        headers = {
            "Content-Type": media_type,
            "Content-Length": str(len(body)),
            "Content-Security-Policy": _POLICY,
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "private, max-age=3600" if is_kept else "no-store",
            **({"Connection": "close"} if self.close_connection else {}),
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _check(self) -> tuple[str, dict[str, str]]:
        """Return the path below the token, and the parameters, of a request that this page has sent."""
        port = self.server.server_port
        hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        if self.headers.get("Host") not in hosts:
            raise _RequestError(HTTPStatus.MISDIRECTED_REQUEST, "this server is not known by that name")
        origin = self.headers.get("Origin")
        is_foreign = origin is not None and origin not in {f"http://{host}" for host in hosts}
        if is_foreign or self.headers.get("Sec-Fetch-Site") == "cross-site":
            raise _RequestError(HTTPStatus.FORBIDDEN, "the request comes from another web site")
        url = urlsplit(self.path)
        _, token, *rest = (*url.path.split("/", 2), "")
        if not hmac.compare_digest(token.encode(), self.server.token.encode()):
            raise _RequestError(HTTPStatus.NOT_FOUND, "open the address that `ureca view` prints")
        values = parse_qs(url.query, keep_blank_values=True, max_num_fields=8)
        return rest[0], {name: texts[-1] for name, texts in values.items()}

    def _get(self, path: str, parameters: dict[str, str]) -> tuple[bytes, str, bool]:
        view = self.server.view
        if path in _ASSETS:
            asset = _ASSETS[path]
            return read_asset(*asset).encode(), f"{_TYPES[asset[-1].rpartition('.')[2]]}; charset=utf-8", False
        if path == "api/summary":
            return _encoded(view.summary())
        if path in ("api/regions", "api/histograms"):
            page = _Page.model_validate_json(parameters.get("request", "{}"))
            if path == "api/regions":
                return _encoded(view.page(page))
            return _encoded(view.index.histograms(page.query, page.version))
        if path == "api/image":
            return _encoded(view.image(_number(parameters)))
        pictures = {"image": view.picture, "crop": view.crop}
        if path not in pictures:
            raise _RequestError(HTTPStatus.NOT_FOUND, "there is no such page")
        return pictures[path](_number(parameters)), "image/jpeg", True

    def _post(self, path: str, _parameters: dict[str, str]) -> tuple[bytes, str, bool]:
        if path != "api/corrections":
            raise _RequestError(HTTPStatus.NOT_FOUND, "there is no such page")
        if self.headers.get_content_type() != "application/json":
            raise _RequestError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "a correction is JSON")
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdecimal() or int(length) > _MAX_BODY_BYTES:
            raise _RequestError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a correction has at most {_MAX_BODY_BYTES} bytes"
            )
        decision = _Decision.model_validate_json(self.rfile.read(int(length)))
        return _encoded(self.server.view.correct(decision))


def _number(parameters: dict[str, str]) -> int:
    text = parameters.get("number", "")
    if not (text.isascii() and text.isdecimal() and len(text) < 16):
        raise _RequestError(HTTPStatus.BAD_REQUEST, "the parameter number is missing")
    return int(text)


def _json(region: FoundRegion) -> dict[str, Any]:
    correction = region.correction
    decided = None if correction is None else {"action": correction.action, "reason": correction.reason}
    values = {name: value for name, value in asdict(region).items() if name != "correction"}
    return values | {"correction": decided}


def _encoded(values: Any) -> tuple[bytes, str, bool]:
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode(), "application/json", False


def _error(message: str) -> bytes:
    return json.dumps({"error": message}).encode()


def _jpeg(pixels: npt.NDArray[np.uint8]) -> bytes:
    buffer = stdio.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=85)
    return buffer.getvalue()

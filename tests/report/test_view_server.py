"""The server of ``ureca view``: its pages, its limits, and decisions in the journal."""

import http.client
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from tests.training.datasets import write_dataset
from ureca.data.corrections import CORRECTIONS, Corrections
from ureca.report.view_server import RunView, ViewServer


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_dataset(tmp_path, 5)


@pytest.fixture
def server(dataset: Path, tmp_path: Path) -> Iterator[ViewServer]:
    with ViewServer(RunView.of_run(str(dataset), tmp_path / "cache")) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class Client:
    """Requests as the page sends them; ``headers`` replace its own."""

    def __init__(self, server: ViewServer) -> None:
        self.port, self.token = server.server_port, server.token

    def send(
        self, path: str, body: Any = None, *, token: str | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        sent = {"Host": f"127.0.0.1:{self.port}"} | ({} if body is None else {"Content-Type": "application/json"})
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        method = "GET" if body is None else "POST"
        connection.request(method, f"/{self.token if token is None else token}/{path}", data, sent)
        response = connection.getresponse()
        answer = response.status, dict(response.headers), response.read()
        connection.close()
        return answer

    def json(self, path: str, body: Any = None) -> Any:
        status, _, data = self.send(path, body)
        assert status == 200, data
        return json.loads(data)

    def regions(self, **parameters: Any) -> dict[str, Any]:
        found: dict[str, Any] = self.json(f"api/regions?request={quote(json.dumps(parameters))}")
        return found


@pytest.fixture
def client(server: ViewServer) -> Client:
    return Client(server)


def test_view_pages_cover_all_regions_once(client: Client) -> None:
    assert client.json("api/summary") == {
        "title": "dataset",
        "num_images": 5,
        "num_regions": 20,
        "num_failed_images": 0,
        "is_writable": True,
    }
    pages = [client.regions(offset=offset, limit=8) for offset in (0, 8, 16, 24)]
    assert [len(page["regions"]) for page in pages] == [8, 8, 4, 0]
    assert {page["total"] for page in pages} == {20}
    found = [(region["image_id"], region["region_id"]) for page in pages for region in page["regions"]]
    assert len(set(found)) == 20
    [one] = client.regions(query={"text": "disc 2", "image_id": found[0][0]})["regions"]
    assert one["caption"] == "the only disc 2" and one["state"] == "unchecked"
    counts = client.json("api/histograms?request=" + quote(json.dumps({"query": {"text": "disc 2"}})))
    assert counts["num_regions"] == counts["words"][2][1] == 5


def test_view_assets_need_no_other_host(client: Client) -> None:
    status, headers, page = client.send("")
    assert status == 200 and headers["Content-Type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in headers["Content-Security-Policy"] and b"http" not in page
    for name in (b"viewer.js", b"panels.js", b"view.js", b"review.js", b"view.css", b"viewer.css"):
        assert name in page
        assert client.send(name.decode())[0] == 200


def test_view_pictures_are_of_the_image_and_the_region(client: Client, dataset: Path) -> None:
    [region] = client.regions(limit=1)["regions"]
    image = client.json(f"api/image?number={region['image']}")
    own = next(one for one in image["regions"] if one["position"] == region["position"])
    assert own["caption"] == region["caption"] and own["outline"].startswith("M")
    source = np.asarray(Image.open(dataset.parent / "images" / image["uri"]).convert("RGB"), np.float64)
    _, headers, data = client.send(f"image?number={region['image']}")
    assert headers["Content-Type"] == "image/jpeg"
    shown = np.asarray(Image.open(io.BytesIO(data)), np.float64)
    assert np.corrcoef(shown.ravel(), source.ravel())[0, 1] > 0.9
    with Image.open(io.BytesIO(client.send(f"crop?number={region['position']}")[2])) as crop:
        assert max(crop.size) == 224
        shades = np.asarray(crop.convert("L"), np.float64)
        assert shades[100:124, 100:124].mean() > 1.5 * shades[:12].mean()  # outside is darkened


def test_view_crop_of_a_large_region_shows_the_image_without_padding(client: Client) -> None:
    large = client.regions(query={"sort": "size", "descending": True}, limit=1)["regions"][0]
    with Image.open(io.BytesIO(client.send(f"image?number={large['image']}")[2])) as image:
        proportion = image.width / image.height
    with Image.open(io.BytesIO(client.send(f"crop?number={large['position']}")[2])) as crop:
        assert 1 <= crop.width / crop.height <= proportion + 0.02
        edges = np.asarray(crop.convert("L"), np.float64)
    assert min(edges[0].mean(), edges[-1].mean(), edges[:, 0].mean(), edges[:, -1].mean()) > 5


def test_view_decisions_are_written_and_shown(client: Client, dataset: Path) -> None:
    regions = client.regions(limit=3)["regions"]
    decide = lambda region, **fields: client.json("api/corrections", {"position": region["position"], **fields})  # noqa: E731
    assert decide(regions[0], action="accept")["state"] == "accepted"
    assert decide(regions[1], action="reject", reason="it is blue")["state"] == "rejected"
    corrected = decide(regions[2], action="correct", caption="the disc of the left")
    assert (corrected["caption"], corrected["correction"]["action"]) == ("the disc of the left", "correct")
    image = client.json(f"api/image?number={regions[2]['image']}")
    assert "the disc of the left" in [region["caption"] for region in image["regions"]]
    assert len((dataset / CORRECTIONS).read_text().splitlines()) == 3
    restored = decide(regions[1], action="restore")
    assert (restored["state"], restored["correction"]) == ("unchecked", None)
    assert {correction.action for correction in Corrections.of_output(str(dataset))} == {"accept", "correct"}


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"position": 0, "action": "remove"}, 400, "action: Input should be"),
        ({"position": 0, "action": "correct", "caption": " "}, 400, "caption"),
        ({"position": 10_000, "action": "accept"}, 404, "no such region"),
        ({"position": -1, "action": "accept"}, 400, "position"),
        ({"position": 0, "action": "accept", "image_id": "x"}, 400, "image_id"),
        (b"{", 400, "Invalid JSON"),
        (b" " * 70_000, 413, "at most 65536 bytes"),
    ],
    ids=["action", "empty", "unknown", "negative", "extra", "json", "long"],
)
def test_view_invalid_decisions_are_refused_and_not_written(
    client: Client, dataset: Path, body: Any, status: int, message: str
) -> None:
    answer = client.send("api/corrections", body)
    assert answer[0] == status and message in json.loads(answer[2])["error"]
    assert not (dataset / CORRECTIONS).exists()


def test_view_refuses_other_sites_names_and_tokens(client: Client, dataset: Path) -> None:
    decision = {"position": 0, "action": "accept"}
    assert client.send("api/summary", token=client.token[:-1])[0] == 404
    assert client.send("", token="")[0] == 404
    assert client.send("api/summary", Host="attacker.example")[0] == 421  # a name that resolves to this machine
    assert client.send("api/corrections", decision, Origin="http://attacker.example")[0] == 403
    assert client.send("api/corrections", decision, Origin="null")[0] == 403
    assert client.send("api/summary", Sec_Fetch_Site="cross-site")[0] == 403
    assert client.send("api/corrections", decision, Content_Type="text/plain")[0] == 415  # as forms send it
    assert client.send("../run.json")[0] == 404
    assert not (dataset / CORRECTIONS).exists()
    assert client.send("api/corrections", decision, Origin=f"http://localhost:{client.port}")[0] == 200


def test_view_invalid_queries_are_refused(client: Client) -> None:
    for request in ("{", '{"limit": 100000}', '{"query": {"sort": "secret"}}', '{"query": {"max_size": 2}}'):
        status, _, data = client.send("api/regions?request=" + quote(request))
        assert status == 400 and json.loads(data)["error"]
    for path in ("api/image?number=99", "crop?number=99999", "image?number=99"):
        assert client.send(path)[0] == 404
    assert client.send("image?number=-1")[0] == 400


def test_view_of_a_removed_image_says_so(client: Client, dataset: Path) -> None:
    for path in (dataset.parent / "images").glob("*.png"):
        path.unlink()
    status, _, data = client.send("image?number=0")
    assert status == 422 and "missing_file" in json.loads(data)["error"]
    assert client.json("api/image?number=0")["regions"]

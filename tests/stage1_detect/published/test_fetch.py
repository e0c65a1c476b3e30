"""References are fetched from servers of the tests' own on the loopback address; nothing else is asked."""

import hashlib
import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from stage1_detect.published import fetch as fetching
from stage1_detect.published.fetch import fetch, is_reference, shown
from stage1_detect.published.recognise import recognise
from store_schema.errors import ButdError, CheckpointError, UsageError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "someone/frcnn"


def weights() -> bytes:
    file = io.BytesIO()
    torch.save({"roi_heads.box_predictor.cls_embedding.weight": torch.ones(2, 3)}, file)
    return file.getvalue()


class Hub(ThreadingHTTPServer):
    """A model hub with one repository of one large file, and plain files; counts what it is asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content = weights()
        self.announced = hashlib.sha256(self.content).hexdigest()
        self.repository, self.name = REPOSITORY, "pytorch_model.bin"
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, path = self.server, self.path.split("?")[0]
        hub.requests.append(f"{self.command} {path}")
        name, size = hub.name, len(hub.content)
        if path.startswith(f"/api/models/{hub.repository}/tree/"):
            lfs = {"oid": hub.announced, "size": size, "pointerSize": 130}
            self._json([{"type": "file", "oid": "1" * 40, "size": size, "path": name, "lfs": lfs}])
        elif path.startswith(f"/api/models/{hub.repository}"):
            self._json({"id": hub.repository, "sha": COMMIT, "siblings": [{"rfilename": name}]})
        elif path == f"/{hub.repository}/resolve/{COMMIT}/{name}":
            self._send(
                hub.content,
                {"ETag": f'"{hub.announced}"', "X-Repo-Commit": COMMIT, "X-Linked-Size": str(size)},
            )
        elif path.startswith("/files/"):
            self._send(hub.content, {})
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def log_message(self, *arguments: Any) -> None:
        """Quiet."""

    def _json(self, content: Any) -> None:
        self._send(json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send(self, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The server, with every cache in the test's own folder."""
    from huggingface_hub import constants

    server = Hub()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_repository_is_downloaded_once_and_used_offline(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    folder = fetch(f"hf:{REPOSITORY}")
    assert (folder / "pytorch_model.bin").read_bytes() == hub.content
    assert folder.name == COMMIT
    assert recognise(folder) == "hf-frcnn-vg"
    downloads = [request for request in hub.requests if request.startswith("GET /someone")]
    assert len(downloads) == 1
    assert fetch(f"hf:{REPOSITORY}@{COMMIT}") == folder
    assert [request for request in hub.requests if request.startswith("GET /someone")] == downloads
    asked = len(hub.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch(f"hf:{REPOSITORY}") == folder
    assert len(hub.requests) == asked
    with pytest.raises(ButdError, match=r"not in the cache, and the hub is not reached \(offline\?\)"):
        fetch("hf:someone/else")


def test_a_timm_classifier_is_downloaded_once_and_used_offline(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    pytest.importorskip("timm")
    hub.repository, hub.name = "timm/resnet18.a1_in1k", "model.safetensors"
    path = fetch("timm:resnet18.a1_in1k")
    assert path.name == "model.safetensors"
    assert path.read_bytes() == hub.content
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch("timm:resnet18.a1_in1k") == path
    with pytest.raises(ButdError, match=r"not in the cache, and the hub is not reached \(offline\?\)"):
        fetch("timm:resnet34.a1_in1k")
    with pytest.raises(UsageError, match=r"timm:resnet19: timm .* has no such model"):
        fetch("timm:resnet19")


def test_a_file_that_is_not_what_the_hub_promised_is_refused(hub: Hub) -> None:
    hub.announced = "ab" * 32
    with pytest.raises(CheckpointError, match="not what the hub promised"):
        fetch(f"hf:{REPOSITORY}")


def test_a_repository_that_does_not_exist_is_the_users_mistake(hub: Hub) -> None:
    for reference in ("hf:someone/else", "hf:no slash here"):
        with pytest.raises(UsageError, match=reference):
            fetch(reference)


def test_a_url_is_downloaded_once_and_its_hash_checked(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    url, sha256 = f"{hub.url}/files/w.pth", hashlib.sha256(hub.content).hexdigest()
    path = fetch(f"{url}#sha256={sha256}")
    assert path.read_bytes() == hub.content
    assert fetch(f"{url}#sha256={sha256[:8]}") == path
    assert len(hub.requests) == 1
    with pytest.raises(CheckpointError, match="its sha256 begins with"):
        fetch(f"{url}#sha256={'0' * 64}")
    assert fetch(url) == path
    assert f"#sha256={sha256}" in caplog.text
    with pytest.raises(CheckpointError, match="not the file that was meant"):
        fetch(f"{hub.url}/files/other-00000000.pth")
    assert fetch(f"{hub.url}/files/other-{sha256[:8]}.pth").read_bytes() == hub.content
    with pytest.raises(UsageError, match="8 to 64 hexadecimal digits"):
        fetch(f"{url}#md5=abc")


def test_servers_that_fail_are_named_without_secrets(hub: Hub) -> None:
    with pytest.raises(UsageError, match="the server answers 404") as raised:
        fetch(f"{hub.url}/nowhere/w.pth?token=secret")
    assert "secret" not in str(raised.value)
    with pytest.raises(ButdError, match="cannot be downloaded"):
        fetch("http://127.0.0.1:9/w.pth")
    assert shown("https://me:secret@host.org/a/w.pth?token=secret") == "https://host.org/a/w.pth"


def test_torchvisions_weights_are_found_by_name(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fetching.torchvision_url("fasterrcnn_resnet50_fpn").endswith(
        "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth"
    )
    with pytest.raises(UsageError, match="torchvision has no such model"):
        fetch("torchvision:fasterrcnn_vgg")
    sha256 = hashlib.sha256(hub.content).hexdigest()
    monkeypatch.setattr(fetching, "torchvision_url", lambda name: f"{hub.url}/files/{name}-{sha256[:8]}.pth")
    assert fetch("torchvision:fasterrcnn_x").name == f"fasterrcnn_x-{sha256[:8]}.pth"


def test_paths_are_no_references() -> None:
    assert not any(is_reference(text) for text in ("runs/detector", "/tmp/hf", "C:/x", "hf"))
    assert all(is_reference(text) for text in ("hf:a/b", "torchvision:x", "http://x/y", "https://x/y"))

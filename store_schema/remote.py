"""Stores behind http://, https:// and s3://: the part of `pathlib.Path` that reading a store needs, through obstore.

A plain HTTP server lists no folders, so nothing here does: names are derived from what the store says about itself.
Every failure is one line that names address and cause. Of a URL only scheme, host and path are ever shown: a user
name, password or query may be a secret. What is asked ahead (`ask`) is fetched by threads in the background.
"""

import base64
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from store_schema.errors import StoreUnreachableError, UsageError

if TYPE_CHECKING:
    from obstore.store import BackoffConfig, ClientConfig
    from zarr.abc.store import Store

SCHEMES = ("http", "https", "s3")
TIMEOUT_SECONDS = 30.0
"""Of one request; to connect, a third of it."""
MAX_RETRIES = 3
"""After a status of 5xx, a connection that fails, an answer that does not come or ends early."""
THREADS = 16
MAX_ASKED = 4096
"""Answers kept for whoever asked ahead; older ones are dropped and, when needed after all, fetched again."""

Range = tuple[int, int]
"""Start and length, in bytes."""


class RemoteFiles:
    """The files under one URL. It pickles as the URL and connects anew where it arrives."""

    def __init__(self, url: str) -> None:
        """Connect to nothing yet. Errors: `UsageError` for a URL that cannot be one of a store."""
        parts = urlsplit(url)
        if parts.scheme not in SCHEMES or not parts.hostname:
            raise UsageError(
                f"a store's URL starts with {'://, '.join(SCHEMES)}:// and a host or bucket, got {parts.scheme}://"
            )
        self._url = url
        port = "" if parts.port is None else f":{parts.port}"
        self.shown = f"{parts.scheme}://{parts.hostname}{port}{parts.path.rstrip('/')}"
        self._asked: OrderedDict[tuple[str, Range | None], Future[bytes]] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteFiles, (self._url,)

    def read(self, name: str, part: Range | None = None) -> bytes:
        """A file's bytes, or a part of them.

        Errors: `FileNotFoundError` where there is no such file; `StoreUnreachableError` for all else.
        """
        with self._lock:
            asked = self._asked.pop((name, part), None)
        return asked.result() if asked is not None else self._fetch(name, part)

    def ask(self, name: str, part: Range | None = None) -> "Future[bytes]":
        """Begin to fetch what `read` will be asked for, in the background; what fails, `read` will say."""
        with self._lock:
            future = self._asked.get((name, part))
            if future is None:
                future = self._asked[name, part] = self._threads.submit(self._fetch, name, part)
            while len(self._asked) > MAX_ASKED:
                self._asked.popitem(last=False)[1].cancel()
        return future

    def existing(self, places: "Mapping[RemotePath, int]") -> list[int]:
        """The numbers of those files that are there. Their bytes are kept for the reads that follow."""
        asked = [(number, self.ask(path.relative)) for path, number in places.items()]
        return [number for number, future in asked if not isinstance(future.exception(), FileNotFoundError)]

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where there is none. Errors: `StoreUnreachableError`."""
        import obstore

        try:
            with explained(f"{self.shown}/{name}"):
                return int(obstore.head(self.connection, name)["size"])
        except FileNotFoundError:
            return None

    @cached_property
    def connection(self) -> Any:  # noqa: ANN401  (one of obstore's stores)
        """The obstore store at the URL; s3 takes credentials, region and endpoint from the AWS_* variables."""
        from obstore.store import from_url

        parts = urlsplit(self._url)
        options: ClientConfig = {
            "timeout": f"{TIMEOUT_SECONDS:g}s",
            "connect_timeout": f"{TIMEOUT_SECONDS / 3:g}s",
            "allow_http": (os.environ.get("AWS_ENDPOINT_URL", "") if parts.scheme == "s3" else self._url)
            .lower()
            .startswith("http://"),
        }
        if parts.username is not None:
            user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            options["default_headers"] = {
                "Authorization": f"Basic {base64.b64encode(user.encode()).decode()}"
            }
        address = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        backoff: BackoffConfig = {
            "init_backoff": timedelta(seconds=0.1),
            "max_backoff": timedelta(seconds=2),
            "base": 2,
        }
        with explained(self.shown):
            return from_url(
                address,
                client_options=options,
                retry_config={
                    "max_retries": MAX_RETRIES,
                    "backoff": backoff,
                    "retry_timeout": timedelta(seconds=TIMEOUT_SECONDS * (MAX_RETRIES + 1)),
                },
            )

    def zarr_store(self) -> "Store":
        """The same files for zarr, which writes the name of its store into its log."""
        from zarr.storage import ObjectStore

        class Shown(ObjectStore[Any]):
            def __str__(store) -> str:
                return self.shown

            __repr__ = __str__

        return Shown(self.connection, read_only=True)

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(THREADS, thread_name_prefix="store")

    def _fetch(self, name: str, part: Range | None) -> bytes:
        """Read; an answer that ends early is asked for again here, all else that may pass within obstore."""
        for attempt in range(MAX_RETRIES):
            try:
                return self._fetch_once(name, part)
            except StoreUnreachableError as error:
                if CUT_SHORT not in str(error):
                    raise
                time.sleep(0.1 * 2**attempt)
        return self._fetch_once(name, part)

    def _fetch_once(self, name: str, part: Range | None) -> bytes:
        import obstore

        with explained(f"{self.shown}/{name}"):
            if part is None:
                return bytes(obstore.get(self.connection, name).bytes())
            data = bytes(obstore.get_range(self.connection, name, start=part[0], length=part[1]))
        if len(data) != part[1]:
            raise StoreUnreachableError(
                f"{self.shown}/{name}: {CUT_SHORT}: {len(data)} of {part[1]} bytes from byte {part[0]} came"
            )
        return data


class RemotePath:
    """A file or folder of a remote store. As text it is its URL without secrets."""

    def __init__(self, files: RemoteFiles, name: str = "") -> None:
        self.files = files
        self.relative = name
        """Path within the store, "" for its folder."""

    def __truediv__(self, name: str | Path) -> "RemotePath":
        return RemotePath(self.files, f"{self.relative}/{name}".lstrip("/"))

    def __str__(self) -> str:
        return f"{self.files.shown}/{self.relative}".rstrip("/")

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return RemotePath, (self.files, self.relative)

    @property
    def name(self) -> str:
        """The last part."""
        return str(self).rpartition("/")[2]

    @property
    def parent(self) -> "RemotePath":
        """The folder that it lies in; the store's folder is its own."""
        return RemotePath(self.files, self.relative.rpartition("/")[0])

    def read_bytes(self) -> bytes:
        """The whole file; errors as `RemoteFiles.read`."""
        return self.files.read(self.relative)

    def read_range(self, start: int, size: int) -> bytes:
        """A part of the file; errors as `RemoteFiles.read`."""
        return self.files.read(self.relative, (start, size))

    def ask(self, start: int | None = None, size: int = 0) -> None:
        """Begin to fetch what will be read."""
        self.files.ask(self.relative, None if start is None else (start, size))

    def is_file(self) -> bool:
        """Whether there is such a file. Errors: `StoreUnreachableError`."""
        return self.files.size(self.relative) is not None


StorePath = Path | RemotePath
AnyPath = TypeVar("AnyPath", Path, RemotePath)


def store_path(place: str | StorePath) -> StorePath:
    """Where a store lies: a folder, or a URL. Errors: `UsageError` for a URL of another kind."""
    if isinstance(place, str) and re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", place):
        return RemotePath(RemoteFiles(place))
    return Path(place) if isinstance(place, str) else place


def file_size(path: StorePath) -> int:
    """Bytes of a file. Errors: `FileNotFoundError` and others of the system; `StoreUnreachableError`."""
    if isinstance(path, Path):
        return path.stat().st_size
    size = path.files.size(path.relative)
    if size is None:
        raise FileNotFoundError(f"{path}: there is no such file (404)")
    return size


def file_bytes(path: StorePath, start: int = 0, size: int | None = None) -> NDArray[np.uint8]:
    """A file's bytes, or a part of them, in memory. Errors as `file_size`."""
    if isinstance(path, Path):
        return np.fromfile(path, np.uint8, -1 if size is None else size, offset=start)
    data = path.read_bytes() if size is None else path.read_range(start, size)
    return np.frombuffer(data, np.uint8)


CUT_SHORT = "the answer ended before all of it had come"
_STATUS = {
    401: "the server wants credentials (401)",
    403: "the server refuses access (403): check the credentials, and that names that begin with a dot are served",
}
_SIGNS = {
    "Timeout": "no answer within {seconds:g} seconds; is the server overloaded or the network down?",
    "TimedOut": "no answer within {seconds:g} seconds; is the server overloaded or the network down?",
    "IncompleteBody": CUT_SHORT,
    "UnexpectedEof": CUT_SHORT,
    "kind: Connect": "cannot connect; is the address right and the server running?",
    "Range request not supported": "the server ignores ranges, which reading features needs; use another server",
    "credential": "no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true",
}
"""What in the text of an obstore error means what."""


@contextmanager
def explained(shown: str) -> Iterator[None]:
    """Turn obstore's errors into one line each. Theirs hold the whole URL, so they are not chained."""
    from obstore.exceptions import BaseError

    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(f"{shown}: there is no such file (404)") from None
    except BaseError as error:
        raise StoreUnreachableError(f"{shown}: {_reason(str(error))}") from None


def _reason(text: str) -> str:
    status = re.search(r"status(?: code)?: (\d{3})", text)
    if status is not None:
        number = int(status[1])
        if number >= 500:
            return f"the server failed (status {number}), also when asked again; try later"
        return _STATUS.get(number, f"the server answers with status {number}")
    for sign, reason in _SIGNS.items():
        if sign in text:
            return reason.format(seconds=TIMEOUT_SECONDS)
    return f"reading failed ({text.split(':', 1)[0].strip()})"

"""Stores behind a URL, read from a real HTTP server and a real S3 server on the loopback device."""

import logging
import pickle
import shutil
import threading
import traceback
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moto.server import ThreadedMotoServer

from store_schema import remote
from store_schema.errors import (
    StoreDamagedError,
    StoreError,
    StoreNotFoundError,
    StoreUnreachableError,
    UsageError,
)
from store_schema.metadata import StoreMetadata
from store_schema.reader import RegionStore
from store_schema.remote import RemotePath, store_path
from store_schema.writer import StoreWriter
from tests.store_schema.range_server import Fault, Served, serve
from tests.store_schema.test_reader import GOOD, VARIANTS, assert_equal, flip, without_records, write_records
from tests.store_schema.tiny import (
    BAD_ID,
    IDS,
    METADATA,
    finish,
    record,
    same_record,
    write_store,
    written_ids,
)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serve(tmp_path) as server:
        yield server


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "TIMEOUT_SECONDS", 0.5)
    monkeypatch.setattr(remote, "MAX_RETRIES", 1)


@pytest.fixture(scope="module")
def bucket() -> Iterator[Any]:
    """An empty bucket of moto's S3 server, named by the variables that every S3 program reads."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    values = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "very-secret",
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, value)
        client = boto3.client("s3", endpoint_url=values["AWS_ENDPOINT_URL"], region_name="us-east-1")
        client.create_bucket(Bucket="regions")
        yield client
    server.stop()


def upload(client: Any, folder: Path, prefix: str) -> str:
    for file in folder.rglob("*"):
        if file.is_file():
            client.upload_file(str(file), "regions", f"{prefix}/{file.relative_to(folder)}")
    return f"s3://regions/{prefix}"


@pytest.mark.parametrize("metadata", VARIANTS)
def test_a_store_behind_http_reads_as_on_disk(
    tmp_path: Path, served: Served, metadata: StoreMetadata
) -> None:
    local = RegionStore.open(write_store(tmp_path / "store", metadata))
    store = RegionStore.open(f"{served.url}/store")
    assert written_ids(store) == GOOD
    assert store.problems() == local.problems()
    assert store.fingerprint == local.fingerprint
    for image_id in GOOD:
        assert same_record(store.image(image_id), record(image_id, metadata)), image_id
    assert_equal(store.read(GOOD), local.read(GOOD))
    assert store.to_dataframe().equals(local.to_dataframe())


@pytest.mark.parametrize("metadata", [VARIANTS[0], VARIANTS[-1]])
def test_a_store_behind_s3_reads_as_on_disk(tmp_path: Path, bucket: Any, metadata: StoreMetadata) -> None:
    path = write_store(tmp_path / "store", metadata)
    store = RegionStore.open(upload(bucket, path, f"{metadata.codec}/deep"))
    assert_equal(store.read(GOOD), RegionStore.open(path).read(GOOD))
    assert written_ids(store) == GOOD


def test_a_store_of_other_zarr_tools_is_read_through_zarr(
    tmp_path: Path, served: Served, bucket: Any
) -> None:
    """Without our records of blocks; zarr's own store on the same connection."""
    local = RegionStore.open(write_store(tmp_path / "store"))
    bare = without_records(tmp_path / "store", tmp_path / "bare")
    for url in (f"{served.url}/bare", upload(bucket, bare, "bare")):
        assert_equal(RegionStore.open(url).read(GOOD), local.read(GOOD))


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    num_regions=st.lists(st.integers(0, 23), min_size=1, max_size=9),
    min_regions=st.sampled_from([0, 23]),
    codec=st.sampled_from(["none", "zstd"]),
    block_size=st.integers(1, 5),
    picks=st.lists(st.integers(0, 8), max_size=12),
)
def test_mapped_zarrs_and_remote_give_identical_bytes(
    tmp_path_factory: pytest.TempPathFactory,
    num_regions: list[int],
    min_regions: int,
    codec: Any,
    block_size: int,
    picks: list[int],
) -> None:
    metadata = replace(
        METADATA, min_regions=min_regions, max_regions=23, codec=codec, block_size=block_size, feature_dim=3
    )
    folder = tmp_path_factory.mktemp("any")
    records = [record(f"p{number}", metadata, num_regions=num) for number, num in enumerate(num_regions)]
    write_records(folder / "store", metadata, records)
    bare = without_records(folder / "store", folder / "bare")
    asked = [records[pick % len(records)].image_id for pick in picks]
    mapped = RegionStore.open(folder / "store").read(asked)
    with serve(folder) as served:
        for other in (bare, f"{served.url}/store", f"{served.url}/bare"):
            assert_equal(mapped, RegionStore.open(other).read(asked))
    shutil.rmtree(folder)


def test_of_an_unfinished_store_the_finished_blocks_are_read(tmp_path: Path, served: Served) -> None:
    with StoreWriter.open(tmp_path / "store", METADATA) as writer:
        blocks = writer.plan(IDS)
        finish(writer, blocks[0])
        finish(writer, blocks[2])
        assert written_ids(RegionStore.open(f"{served.url}/store")) == [
            image_id for image_id in IDS[:4] + IDS[8:] if image_id != BAD_ID
        ]


def test_a_batch_asks_for_each_chunk_once_and_for_an_index_once(tmp_path: Path, served: Served) -> None:
    write_store(tmp_path / "store")
    store = RegionStore.open(f"{served.url}/store")
    rows = store.rows(GOOD)
    stored = int((store.num_regions(rows) > 0).sum())
    for indexes in (3, 0):
        served.requests.clear()
        store.feature_views(rows)
        assert len([path for path in served.requests if "/features/" in path]) == stored + indexes


@pytest.mark.parametrize(
    ("fault", "message", "tries"),
    [
        (401, r"the server wants credentials \(401\)", 1),
        (403, r"the server refuses access \(403\): check the credentials", 1),
        (418, "the server answers with status 418", 1),
        (500, r"the server failed \(status 500\), also when asked again", 2),
        (503, r"the server failed \(status 503\), also when asked again", 2),
        ("slow", "no answer within 0.5 seconds", 2),
        ("cut", "the answer ended before all of it had come", 2),
    ],
)
@pytest.mark.usefixtures("impatient")
def test_what_a_server_does_wrong_is_named_with_the_address(
    tmp_path: Path, served: Served, fault: Fault, message: str, tries: int
) -> None:
    write_store(tmp_path / "store")
    store = RegionStore.open(f"{served.url}/store")
    for name in ("store/zarr.json", "features/c.0.0.0", "000001.json"):
        served.faults = {name: fault}
        served.requests.clear()
        act = (
            partial(store.read, GOOD[:1])
            if "features" in name
            else partial(RegionStore.open, str(store.path))
        )
        with pytest.raises(StoreUnreachableError, match=rf"^{served.url}/.*{name}: {message}") as caught:
            act()
        assert "\n" not in str(caught.value)
        asked = [request for request in served.requests if request.endswith(name)]
        assert asked.count(asked[-1]) == tries
    served.faults.clear()
    assert same_record(store.image(GOOD[0]), record(GOOD[0])), "it recovers with the server"


@pytest.mark.usefixtures("impatient")
def test_a_fault_that_passes_is_not_noticed(tmp_path: Path, served: Served) -> None:
    write_store(tmp_path / "store")
    faults: tuple[Fault, ...] = (500, "cut")
    for fault in faults:
        store = RegionStore.open(f"{served.url}/store")
        served.faults, served.faults_left = {"features/c.0.0.0": fault}, 1
        assert same_record(store.image(GOOD[0]), record(GOOD[0]))


def test_a_server_without_ranges_is_named(tmp_path: Path, served: Served) -> None:
    write_store(tmp_path / "store")
    served.faults["c.0.0.0"] = "whole"
    with pytest.raises(StoreUnreachableError, match=r"features/c.0.0.0: the server ignores ranges"):
        RegionStore.open(f"{served.url}/store").image(GOOD[0])


def test_missing_shards_and_stores_are_named(tmp_path: Path, served: Served) -> None:
    with pytest.raises(
        StoreNotFoundError, match=rf"no region store at {served.url}/nothing: there is no zarr.json"
    ):
        RegionStore.open(f"{served.url}/nothing")
    write_store(tmp_path / "store")
    (tmp_path / "store" / "features" / "c.1.0.0").unlink()
    store = RegionStore.open(f"{served.url}/store")
    with pytest.raises(StoreDamagedError, match=r"block 1, features: .*c.1.0.0 is missing, .*upload"):
        store.read(GOOD)
    assert same_record(store.image(GOOD[0]), record(GOOD[0]))


@pytest.mark.usefixtures("impatient")
def test_a_shard_that_is_shorter_on_the_server_is_named(tmp_path: Path, served: Served) -> None:
    write_store(tmp_path / "store")
    file = tmp_path / "store" / "features" / "c.1.0.0"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(StoreError, match=r"features/c.1.0.0.*(ended before|status 416|shorter)"):
        RegionStore.open(f"{served.url}/store").read(GOOD)


def test_changed_bytes_are_named_with_their_row(tmp_path: Path, served: Served) -> None:
    write_store(tmp_path / "store")
    flip(tmp_path / "store" / "features" / "c.0.0.0", 3)
    row = next(row for row, image_id in enumerate(GOOD) if len(record(image_id).boxes))
    with pytest.raises(StoreDamagedError, match=f"block 0, features: the bytes of row {row} have changed"):
        RegionStore.open(f"{served.url}/store").read(GOOD)
    flip(tmp_path / "store" / "boxes" / "c.1.0.0", 3)
    with pytest.raises(StoreDamagedError, match=r"block 1, boxes: c.1.0.0"):
        RegionStore.open(f"{served.url}/store").boxes([4])


def test_a_server_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "MAX_RETRIES", 0)
    with pytest.raises(StoreUnreachableError, match=r"http://127.0.0.1:9/store/zarr.json: cannot connect"):
        RegionStore.open("http://127.0.0.1:9/store")


def test_a_missing_bucket_and_a_missing_key_are_named(bucket: Any) -> None:
    for url in ("s3://regions/nothing", "s3://no-such-bucket/x"):
        with pytest.raises(StoreNotFoundError, match=f"no region store at {url}"):
            RegionStore.open(url)


@pytest.mark.parametrize("secret_in", ["//reader:s3cr3t@", "?token=s3cr3t"])
@pytest.mark.usefixtures("impatient")
def test_secrets_in_urls_reach_the_server_and_are_shown_nowhere(
    tmp_path: Path, served: Served, secret_in: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    write_store(tmp_path / "store")
    without_records(tmp_path / "store", tmp_path / "bare")
    texts: list[str] = []
    for name in ("store", "bare", "nothing"):
        url = f"{served.url}/{name}"
        url = url + secret_in if secret_in[0] == "?" else url.replace("//", secret_in)
        faults: tuple[Fault | None, ...] = (None, 403, "cut")
        for fault in faults:
            try:
                served.faults.clear()
                store = pickle.loads(pickle.dumps(RegionStore.open(url)))
                texts += [str(store.path), repr(store.path), repr(vars(store.path))]
                if fault is not None:
                    served.faults["c.0.0.0"] = fault
                store.read(GOOD)
            except StoreError:
                texts.append(traceback.format_exc())
    sent = served.authorization[-1] if secret_in[0] == "/" else None
    assert sent is None or sent.startswith("Basic cmVhZGVyOnMzY3IzdA")
    assert len(texts) >= 12
    assert all("s3cr3t" not in text and "cmVhZGVy" not in text for text in [*texts, caplog.text])


def test_urls_that_cannot_be_stores_are_refused_without_being_shown() -> None:
    for url in ("ftp://user:s3cr3t@host/store", "http:///s3cr3t", "gopher://s3cr3t"):
        with pytest.raises(UsageError, match=r"a store's URL starts with http://, https://, s3://") as caught:
            RegionStore.open(url)
        assert "s3cr3t" not in str(caught.value)


def test_places_that_are_no_urls_are_folders() -> None:
    assert store_path("runs/regions.zarr") == Path("runs/regions.zarr")
    assert isinstance(store_path("https://host/regions.zarr"), RemotePath)


def test_answers_that_nobody_fetches_do_not_pile_up(
    tmp_path: Path, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "MAX_ASKED", 5)
    write_store(tmp_path / "store")
    store = RegionStore.open(f"{served.url}/store")
    expected = RegionStore.open(tmp_path / "store").read(GOOD)
    for _ in range(3):
        store.will_need(store.rows(GOOD))
    assert isinstance(store.path, RemotePath)
    assert len(store.path.files._asked) <= 5
    assert_equal(store.read(GOOD), expected)


def test_several_threads_read_one_remote_store(tmp_path: Path, served: Served) -> None:
    expected = RegionStore.open(write_store(tmp_path / "store")).read(GOOD)
    store = RegionStore.open(f"{served.url}/store")
    results: list[Any] = []
    threads = [threading.Thread(target=lambda: results.append(store.read(GOOD))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 6
    for result in results:
        assert_equal(result, expected)


def test_it_pickles_small_and_opens_anew(tmp_path: Path, served: Served) -> None:
    store = RegionStore.open(f"{served.url}/{write_store(tmp_path / 'store').name}", verify="always")
    data = pickle.dumps(store)
    assert len(data) < 500
    assert_equal(pickle.loads(data).read(GOOD), store.read(GOOD))

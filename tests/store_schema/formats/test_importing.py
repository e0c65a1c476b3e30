"""An import names what is malformed and takes the rest, goes on where it was stopped, and says what it assumed."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from store_schema.errors import ConfigError, MalformedRecordError, StoreMismatchError, UsageError
from store_schema.formats.conversion import Converter, Source
from store_schema.formats.importing import import_readers, import_regions
from store_schema.formats.protocol import BadEntry, Entry, Picture, ReadOptions
from store_schema.reader import RegionStore
from store_schema.records import ImageRecord, Problem
from store_schema.tables import write_table
from store_schema.verify import verify
from tests.store_schema.formats import foreign
from tests.store_schema.formats.foreign import ADAPTIVE, FIXED, regions
from tests.store_schema.formats.imports import assert_holds, config, imported, summarised
from tests.store_schema.tiny import contents

MANY = [regions(number, 6) for number in range(100, 108)]


def damaged(path: Path, line: int, change: dict[int, bytes], *, cut: int | None = None) -> Path:
    """Change fields of one line of a file, or cut its end off."""
    lines = path.read_bytes().split(b"\r\n")
    fields = lines[line].split(b"\t")
    for place, value in change.items():
        fields[place] = value
    lines[line] = b"\t".join(fields)[:cut]
    path.write_bytes(b"\r\n".join(lines))
    return path


@pytest.mark.parametrize(
    ("change", "cut", "reason"),
    [
        ({}, 60, r"5 columns instead of 6; cut short"),
        ({}, -9, r"features has \d+ bytes"),
        ({3: b"six"}, None, "num_boxes is b'six', no whole number"),
        ({3: b"5"}, None, "boxes has 96 bytes, 5 boxes of 4 float32 have 80"),
        ({3: b"-1"}, None, "num_boxes is -1"),
        ({1: b"wide"}, None, "image_w is b'wide', no whole number"),
        ({4: b"*" * 128}, None, "boxes is no base64"),
        ({5: b"AAAA" * 32}, None, "features of shape .6, 7., got .6, 4."),
        ({1: b"10"}, None, "0 <= x1 < x2 <= width"),
    ],
)  # fmt: skip
def test_a_malformed_line_is_named_and_the_others_are_taken(
    change: dict[int, bytes], cut: int | None, reason: str, tmp_path: Path
) -> None:
    path = damaged(foreign.caffe_tsv(tmp_path / "a.tsv", MANY), 3, change, cut=cut)
    store = imported(path, tmp_path / "store")
    assert_holds(store, [*MANY[:3], *MANY[4:]], by="number")
    (problem,) = store.problems()
    assert (problem.image_id, problem.path) == ("103", f"{path}, line 4")
    assert re.search(reason, problem.reason), problem.reason
    assert verify(tmp_path / "store", full=True).ok
    with pytest.raises(MalformedRecordError, match="line 4"):
        imported(path, tmp_path / "strict", strict=True)


def test_a_line_written_again_after_a_crash_counts_once(tmp_path: Path) -> None:
    """As an appending writer leaves it: half a line, then the same picture whole, and one twice."""
    lines = foreign.caffe_tsv(tmp_path / "a.tsv", MANY[:3]).read_bytes().split(b"\r\n")[:3]
    path = tmp_path / "b.tsv"
    path.write_bytes(b"\n".join([lines[0], lines[1][:80], lines[1], lines[2], lines[0], b""]))
    store = imported(path, tmp_path / "store")
    assert_holds(store, MANY[:3], by="number")
    reasons = {problem.path: problem.reason for problem in store.problems()}
    assert set(reasons) == {f"{path}, line 2", f"{path}, line 5"}
    assert f"'100' came before, at {path}, line 1" in reasons[f"{path}, line 5"]


def test_a_stopped_import_goes_on_and_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = foreign.caffe_tsv(tmp_path / "a.tsv", MANY)
    whole = imported(path, tmp_path / "whole", block_size=2)

    seen = 0

    def stop(number: int) -> None:
        nonlocal seen
        seen += number
        if seen == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_regions([path], tmp_path / "store", config(block_size=2), on_pictures=stop)
    assert len(RegionStore.open(tmp_path / "store")) == 4
    read: list[str] = []
    original = Converter.item

    def watched(
        converter: Converter, image_id: str, listed: Source | BadEntry | None
    ) -> ImageRecord | Problem:
        read.append(image_id)
        return original(converter, image_id, listed)

    monkeypatch.setattr(Converter, "item", watched)
    summary = summarised(path, tmp_path / "store", block_size=2)
    assert (summary.done_before, summary.processed, read) == (4, 4, ["104", "105", "106", "107"])
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")
    assert len(whole) == 8


def test_a_file_that_changed_in_between_is_refused(tmp_path: Path) -> None:
    path = foreign.caffe_tsv(tmp_path / "a.tsv", MANY)
    imported(path, tmp_path / "store")
    foreign.caffe_tsv(path, [replace(MANY[0], height=700), *MANY[1:]])
    with pytest.raises(StoreMismatchError, match="imported_from"):
        imported(path, tmp_path / "store")


def test_several_files_come_into_one_store(tmp_path: Path) -> None:
    paths = [foreign.caffe_tsv(tmp_path / f"karpathy_train.{n}.tsv", MANY[4 * n : 4 * n + 4]) for n in (0, 1)]
    summary = import_regions(paths, tmp_path / "store", config())
    store = RegionStore.open(tmp_path / "store")
    assert summary.pictures == 8
    assert_holds(store, MANY, by="number")
    assert [file["file"] for file in store.metadata.detector["imported_from"]] == [
        path.name for path in paths
    ]


def test_the_same_detector_in_two_forms_may_be_mixed_and_an_unknown_one_not(tmp_path: Path) -> None:
    forms = foreign.caffe_tsv(tmp_path / "a.tsv", FIXED), foreign.caffe_tsv(tmp_path / "b.tsv", MANY)
    same = [imported(path, tmp_path / f"{path.stem}1", detector="one") for path in forms]
    unknown = [imported(path, tmp_path / f"{path.stem}2", detector=None) for path in forms]
    assert len({store.features_fingerprint for store in same}) == 1
    assert len({store.features_fingerprint for store in unknown}) == 2
    assert unknown[0].metadata.detector["name"] == "unknown, of a.tsv"


def test_float16_says_its_largest_error(tmp_path: Path) -> None:
    path = foreign.caffe_tsv(tmp_path / "a.tsv", MANY)
    summary = summarised(path, tmp_path / "store", feature_dtype="float16")
    errors = [np.abs(p.features.astype(np.float16).astype(np.float32) - p.features).max() for p in MANY]
    assert summary.largest_error == max(errors) > 0
    assert summary.largest_value == max(p.features.max() for p in MANY)
    assert summarised(path, tmp_path / "exact").largest_error == 0


def test_tables_give_identifiers_for_numbers(tmp_path: Path) -> None:
    rows = [
        {
            "image_id": f"coco:{p.number}",
            "path": f"{p.name}.jpg",
            "width": p.width,
            "height": p.height,
            "split": "val",
        }
        for p in FIXED
    ]
    coco_ids = [{"coco_id": p.number} for p in FIXED]
    write_table(tmp_path, "images", [row | coco_id for row, coco_id in zip(rows, coco_ids, strict=True)])
    for name, path in (
        ("numbers", foreign.caffe_tsv(tmp_path / "a.tsv", FIXED)),
        ("stems", foreign.lxmert_tsv(tmp_path / "b.tsv", FIXED)),
    ):
        store = imported(path, tmp_path / name, tables=tmp_path)
        assert sorted(store.image_ids) == sorted(f"coco:{p.number}" for p in FIXED)
        assert store.image("coco:9").features.tobytes() == FIXED[1].features.tobytes()


def test_sizes_that_disagree_with_the_tables_are_malformed(tmp_path: Path) -> None:
    """A picture turned by EXIF in one and not in the other, or another picture of the same number."""
    sizes = foreign.coco_images(tmp_path / "a.json", [replace(FIXED[0], width=999), *FIXED[1:]])
    store = imported(foreign.caffe_tsv(tmp_path / "a.tsv", FIXED), tmp_path / "store", tables=sizes)
    assert_holds(store, FIXED[1:], by="number")
    assert "999x" in store.problems()[0].reason


def test_background_first_numbers_are_shifted_and_otherwise_named(tmp_path: Path) -> None:
    shifted = [replace(p, objects=np.minimum(p.objects, 1599) + 1) for p in FIXED]
    shifted[0] = replace(shifted[0], objects=np.full(6, 1600))
    path = foreign.lxmert_tsv(tmp_path / "a.tsv", shifted)
    store = imported(path, tmp_path / "wrong")
    assert "object id 1600 is none of the 1600 names" in store.problems()[0].reason
    assert "--first-label 1" in store.problems()[0].reason
    right = imported(path, tmp_path / "right", first_label=1, attributes=None)
    assert right.image(FIXED[0].name).object_ids is not None
    assert right.to_dataframe()["object"].iloc[0] == "buoy"


def test_labels_are_left_out_where_asked(tmp_path: Path) -> None:
    path = foreign.lxmert_tsv(tmp_path / "a.tsv", FIXED)
    assert_holds(imported(path, tmp_path / "store", objects=None, attributes=None), FIXED, by="name")


def test_a_box_past_its_picture_by_rounding_is_cut_back_and_counted(tmp_path: Path) -> None:
    boxes = FIXED[0].boxes.copy()
    boxes[2, 2] = FIXED[0].width + 0.25
    boxes[3, 0] = -0.5
    path = foreign.caffe_tsv(tmp_path / "a.tsv", [replace(FIXED[0], boxes=boxes), *FIXED[1:]])
    summary = summarised(path, tmp_path / "store")
    record = RegionStore.open(tmp_path / "store").image("42")
    assert summary.num_clipped == 2
    assert record.boxes[2, 2] == FIXED[0].width
    assert record.boxes[3, 0] == 0
    assert np.array_equal(np.delete(record.boxes, [2, 3], 0), np.delete(boxes, [2, 3], 0))


def test_a_picture_without_regions_is_kept(tmp_path: Path) -> None:
    path = foreign.lxmert_tsv(tmp_path / "a.tsv", [*ADAPTIVE, regions(5, 0)])
    store = imported(path, tmp_path / "store")
    record = store.image("COCO_val2014_000000000005")
    assert (record.features.shape, record.width) == ((0, foreign.DIM), regions(5, 0).width)


def test_files_with_nothing_in_them_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_bytes(b"1\t2\n" * 3)
    with pytest.raises(
        UsageError, match=r"no picture can be read from it as caffe-tsv; the first: .*line 1.*2 columns"
    ):
        imported(path, tmp_path / "store", format="caffe-tsv")
    assert not (tmp_path / "store").exists()
    with pytest.raises(ConfigError, match="first_label"):
        config(first_label=2)


def test_a_reader_of_ones_own_needs_no_entry_among_ours(tmp_path: Path) -> None:
    """The protocol of docs/formats.md, followed by a stranger."""

    class Mine:
        def entries(self) -> Iterator[Entry | BadEntry]:
            for p in FIXED:
                yield Entry(p.name, len(p.boxes), foreign.DIM, p, "memory")

        def read(self, entry: Entry) -> Picture:
            p: foreign.Regions = entry.place
            return Picture(
                image_id=p.name, width=p.width, height=p.height, boxes=p.boxes, features=p.features
            )

    import_readers([Mine()], [tmp_path], tmp_path / "store", config(), "mine")
    assert_holds(RegionStore.open(tmp_path / "store"), FIXED, by="name")


def test_options_without_effect_are_refused(tmp_path: Path) -> None:
    path = foreign.caffe_tsv(tmp_path / "a.tsv", FIXED)
    (tmp_path / "names.txt").write_text("dog")
    with pytest.raises(UsageError, match=r"names.txt has no effect: the files have no objects"):
        imported(path, tmp_path / "store", objects=str(tmp_path / "names.txt"))
    with pytest.raises(UsageError, match=r"--ids .* has no effect with caffe-tsv"):
        imported(path, tmp_path / "store", read=ReadOptions(ids=tmp_path / "names.txt"))
    with pytest.raises(UsageError, match="can be exported and not imported"):
        imported(path, tmp_path / "store", format="coco-json")


def test_an_id_that_stands_twice_in_a_list_is_named(tmp_path: Path) -> None:
    path = foreign.butd_hdf5(tmp_path / "val36.hdf5", FIXED)
    (tmp_path / "ids.txt").write_text("42\n9\n42\n")
    store = imported(path, tmp_path / "store", read=ReadOptions(ids=tmp_path / "ids.txt"))
    assert_holds(store, FIXED[:2], by="number")
    assert "'42' came before" in store.problems()[0].reason


def test_rows_without_an_id_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The public converter reserves more rows than it fills where pictures are missing."""
    path = foreign.butd_hdf5(tmp_path / "val36.hdf5", FIXED)
    (tmp_path / "ids.txt").write_text("42\n9\n")
    assert_holds(
        imported(path, tmp_path / "store", read=ReadOptions(ids=tmp_path / "ids.txt")), FIXED[:2], by="number"
    )
    assert "1 of 3 rows have no id" in caplog.text


def test_arrays_that_hold_no_numbers_are_malformed(tmp_path: Path) -> None:
    folder = foreign.milvlg_npz(tmp_path / "features", FIXED)
    p = FIXED[0]
    texts = np.full(p.features.shape, "1.0")
    np.savez(folder / p.name, x=texts, bbox=p.boxes, image_h=p.height, image_w=p.width)
    store = imported(folder, tmp_path / "store")
    assert_holds(store, FIXED[1:], by="name")
    assert "numbers are expected" in store.problems()[0].reason


@pytest.mark.parametrize(
    ("content", "reason"),
    [("dog\n\ncat", "line 2 holds no name"), ("dog\ncat,kitten\ndog", "'dog' stands on two lines")],
)
def test_lists_of_names_are_checked(content: str, reason: str, tmp_path: Path) -> None:
    path = foreign.lxmert_tsv(tmp_path / "a.tsv", FIXED)
    (tmp_path / "names.txt").write_text(content)
    with pytest.raises(UsageError, match=reason):
        imported(path, tmp_path / "store", objects=str(tmp_path / "names.txt"))

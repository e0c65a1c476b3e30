"""Decoding ahead: the order, the bounds, the error at its place."""

import threading
import time
from dataclasses import dataclass

import pytest

from stage1_detect.decoding import decode_ahead


@dataclass
class Item:
    place: int
    num_bytes: int = 1


def test_items_come_in_order_whatever_thread_is_slow() -> None:
    def decode(place: int) -> Item:
        time.sleep(0.002 * (place % 3))
        return Item(place)

    found = decode_ahead(20, decode, num_threads=3, max_items=6, max_bytes=100)
    assert [item.place for item in found] == list(range(20))
    assert list(decode_ahead(0, decode, num_threads=3, max_items=6, max_bytes=100)) == []


@pytest.mark.parametrize(("max_items", "max_bytes", "most"), [(5, 10_000, 5), (50, 30, 4)])
def test_no_more_is_decoded_ahead_than_the_bounds_say(max_items: int, max_bytes: int, most: int) -> None:
    """Of ten bytes each, two threads: three fill the bound of bytes, and a thread may have begun one more."""
    begun: list[int] = []

    def decode(place: int) -> Item:
        begun.append(place)
        return Item(place, num_bytes=10)

    ahead = decode_ahead(40, decode, num_threads=2, max_items=max_items, max_bytes=max_bytes)
    for taken in range(1, 41):
        next(ahead)
        time.sleep(0.01)
        assert len(begun) <= taken + most
    assert len(begun) == 40


def test_an_error_comes_at_its_place_and_ends_the_threads() -> None:
    before = threading.active_count()

    def decode(place: int) -> Item:
        if place == 3:
            raise MemoryError("too large")
        return Item(place)

    ahead = decode_ahead(30, decode, num_threads=2, max_items=6, max_bytes=100)
    assert [next(ahead).place for _ in range(3)] == [0, 1, 2]
    with pytest.raises(MemoryError, match="too large"):
        next(ahead)
    assert threading.active_count() == before


def test_leaving_early_ends_the_threads() -> None:
    before = threading.active_count()
    ahead = decode_ahead(1000, Item, num_threads=2, max_items=6, max_bytes=100)
    next(ahead)
    ahead.close()  # type: ignore[attr-defined]  # it is a generator
    assert threading.active_count() == before

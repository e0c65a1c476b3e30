"""Decode pictures on threads, ahead of the network, in order and within bounds of number and memory.

Bounds matter: eighteen photographs of 200 megapixels, decoded ahead in each of four workers, are 40 GB.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Generic, Protocol, TypeVar


class Decoded(Protocol):
    """What a decoding function returns: it says how much memory it holds."""

    @property
    def num_bytes(self) -> int:
        """Bytes of the pixels."""
        ...


T = TypeVar("T", bound=Decoded)


def decode_ahead(
    number: int, decode: Callable[[int], T], *, num_threads: int, max_items: int, max_bytes: int
) -> Iterator[T]:
    """`decode(0)`, `decode(1)`, ... up to `number`, in this order, while threads work on those that come next.

    Args:
        max_items: so many are decoded and wait, at most.
        max_bytes: no further one is begun while those that wait hold more; each thread may exceed it by one.

    Errors: what `decode` raised, at its place in the order.
    """
    window = _Window(number, decode, max_items, max_bytes)
    threads = [
        threading.Thread(target=window.work, name=f"decode-{n}", daemon=True)
        for n in range(min(num_threads, number))
    ]
    for thread in threads:
        thread.start()
    try:
        yield from window
    finally:
        window.close()
        for thread in threads:
            thread.join()


class _Window(Generic[T]):
    """The items between the last one that was taken and the next one to be begun."""

    def __init__(self, number: int, decode: Callable[[int], T], max_items: int, max_bytes: int) -> None:
        self._decode = decode
        self._max_items, self._max_bytes = max_items, max_bytes
        self._futures: list[Future[T]] = [Future() for _ in range(number)]
        self._begun = self._taken = self._waiting_bytes = 0
        self._changed = threading.Condition()

    def __iter__(self) -> Iterator[T]:
        for index in range(len(self._futures)):
            item = self._futures[index].result()
            self._futures[index] = Future()  # the pixels are the caller's now
            with self._changed:
                self._taken += 1
                self._waiting_bytes -= item.num_bytes
                self._changed.notify_all()
            yield item

    def work(self) -> None:
        """Decode what comes next until nothing is left; a thread's life."""
        while True:
            with self._changed:
                self._changed.wait_for(self._may_begin)
                if self._begun == len(self._futures):
                    return
                index = self._begun
                self._begun += 1
            try:
                item = self._decode(index)
            except BaseException as error:  # it is the caller's to handle, at this item's turn
                self._futures[index].set_exception(error)
                self.close()
                return
            with self._changed:
                self._waiting_bytes += item.num_bytes
            self._futures[index].set_result(item)

    def close(self) -> None:
        """Begin nothing further."""
        with self._changed:
            self._begun = len(self._futures)
            self._changed.notify_all()

    def _may_begin(self) -> bool:
        if self._begun == len(self._futures) or self._begun == self._taken:
            return True
        return self._begun - self._taken < self._max_items and self._waiting_bytes < self._max_bytes

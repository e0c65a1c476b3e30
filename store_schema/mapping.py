"""A file mapped into memory for reading, without keeping it open.

Python's own `mmap` holds one file descriptor for each mapping before 3.13, and a store of COCO has 481 blocks: the
usual limit of 1,024 would be met. A mapped file that is cut short afterwards kills the process (SIGBUS): sizes are
checked first, and nothing in a store is ever truncated in place.
"""

import ctypes
import mmap
import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MADV_WILLNEED = 3
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class _Mapping:
    """Owns the address range; arrays made from it keep it alive."""

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            size = os.fstat(descriptor).st_size
            address = _libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
            if address in (None, ctypes.c_void_p(-1).value):
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code), str(path))
        finally:
            os.close(descriptor)
        self.__array_interface__: dict[str, Any] = {
            "data": (address, True),
            "shape": (size,),
            "typestr": "|u1",
            "version": 3,
        }
        # At exit the system unmaps; doing it here could pull the memory from under a living array.
        weakref.finalize(self, _libc.munmap, address, size).atexit = False


def map_file(path: Path) -> NDArray[np.uint8]:
    """The bytes of a file as a read-only array; they are read from the disk as they are touched.

    Errors: `OSError`, also for an empty file.
    """
    return np.asarray(_Mapping(path))


def will_need(address: int, length: int) -> None:
    """Ask the system to read a range of a mapped file now, in the background; `address` is in memory."""
    first = address - address % mmap.PAGESIZE
    _libc.madvise(first, address + length - first, _MADV_WILLNEED)

"""How long a job will take, from a short trial on some of its pictures. Nothing is written."""

import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from stage1_detect.extract import Extractor, build_extractor
from stage1_detect.images import decode_image
from stage1_detect.sources import ImageSource
from stage1_detect.spec import ExtractorSpec
from store_schema.errors import ImageReadError

_TRIED = 48
_MAX_SECONDS = 8.0


def seconds_per_picture(
    sources: Sequence[ImageSource], spec: ExtractorSpec, *, torch_threads: int, batch_size: int
) -> float | None:
    """Seconds that one worker needs for a picture, decoding included; None where none of those tried can be read.

    At most 48 pictures, evenly spread; no further batch is begun after eight seconds. The first picture is done
    twice, and only its second time counts: a network's first call is slow.
    """
    if torch_threads:
        torch.set_num_threads(torch_threads)
    extractor = build_extractor(spec, str(spec.store_metadata().detector["fingerprint"]))
    chosen = sources[:: max(1, len(sources) // _TRIED)][:_TRIED]
    first = next(_decoded(chosen), None)
    if first is None:
        return None
    extractor.extract([first], ["warm-up"])
    start = time.perf_counter()
    extractor.extract([first], ["alone"])
    alone = time.perf_counter() - start
    if (
        alone > _MAX_SECONDS / _TRIED * 4
    ):  # a batch of a slow network would be no short trial, and gains little
        return alone
    start, number = time.perf_counter(), 0
    for batch in _batches(chosen, extractor, batch_size):
        extractor.extract(batch, [str(place) for place in range(len(batch))])
        number += len(batch)
        if time.perf_counter() - start > _MAX_SECONDS:
            break
    return (time.perf_counter() - start) / number


def _decoded(sources: Sequence[ImageSource]) -> Iterator[NDArray[np.uint8]]:
    for source in sources:
        try:
            yield decode_image(source.read(), source.name).pixels
        except ImageReadError:
            continue


def _batches(
    sources: Sequence[ImageSource], extractor: Extractor, batch_size: int
) -> Iterator[list[NDArray[np.uint8]]]:
    """Pictures of one network size together."""
    groups: dict[tuple[int, int], list[NDArray[np.uint8]]] = {}
    for pixels in _decoded(sources):
        group = groups.setdefault(extractor.network_size(pixels.shape[0], pixels.shape[1]), [])
        group.append(pixels)
        if len(group) == batch_size:
            yield group.copy()
            group.clear()
    yield from (group for group in groups.values() if group)

"""Drop the damaged blocks of a store, so that the next run of the job writes exactly those anew.

A dropped block is as if it had never been written: no record, 65535 in `num_regions`, its pictures still planned
for the same rows. Descriptions of arrays are written again from the store's metadata; good blocks are never touched.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from store_schema.durable import remove_files
from store_schema.errors import StoreMismatchError
from store_schema.ledger import ledger_folder, read_plan, record_path
from store_schema.metadata import StoreMetadata
from store_schema.records import Block
from store_schema.root import read_metadata
from store_schema.verify import Finding, Track, verify
from store_schema.writer import StoreWriter


@dataclass(frozen=True, kw_only=True)
class RepairReport:
    """What was wrong and what was done about it."""

    findings: list[Finding]
    dropped: list[Block]
    """Blocks that the next run of the job writes anew."""


def repair(
    path: str | Path, *, full: bool = True, dry_run: bool = False, track: Track = iter
) -> RepairReport:
    """Drop every block in which `verify` finds something; nobody may write the store meanwhile.

    Killed at any instant, it leaves each block whole, damaged as it was, or dropped: run it again.

    Args:
        full: check every byte; otherwise only sizes, records and indexes.
        dry_run: say what would be done.

    Errors: those of `StoreWriter.open`; `StoreDamagedError` where the store's metadata or plan of blocks is broken,
    which nothing in the store can replace; `StoreMismatchError` for a store without records.
    """
    path = Path(path)
    metadata = read_metadata(path)
    if not ledger_folder(path).is_dir():
        raise StoreMismatchError(
            f"{path} has no records of finished blocks, so it cannot be repaired block by block: make it again from "
            "what it was copied from"
        )
    if dry_run:
        findings = verify(path, full, track).findings
        return RepairReport(findings=findings, dropped=_damaged(path, metadata, findings))
    of_descriptions = [finding for finding in verify(path).findings if finding.block is None]
    with StoreWriter.open(path, metadata):  # writes the descriptions again
        findings = verify(path, full, track).findings
        dropped = _damaged(path, metadata, findings)
        for block in dropped:
            _drop(path, metadata, block.index)
    return RepairReport(findings=of_descriptions + findings, dropped=dropped)


def _damaged(path: Path, metadata: StoreMetadata, findings: list[Finding]) -> list[Block]:
    planned = read_plan(path, metadata.block_size)
    numbers = {finding.block for finding in findings}
    return [block for block in planned if block.index in numbers]


def _drop(path: Path, metadata: StoreMetadata, block: int) -> None:
    """Remove a block, first what says that it is whole: `num_regions` to other readers, the record to ours.

    Where only the first is gone, our reader refuses the store and `verify` names the block.
    """
    remove_files([path / "num_regions" / f"c.{block}"])
    remove_files([record_path(path, block)])
    remove_files(_files(path, metadata, block))


def _files(path: Path, metadata: StoreMetadata, block: int) -> Iterator[Path]:
    for name, spec in metadata.arrays().items():
        if len(spec.dims) == 1:
            yield path / name / spec.chunk_key(block)
        else:
            yield from (path / name).glob(f"c.{block}.*")

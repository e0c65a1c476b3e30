"""Where the answers of public implementations lie: committed ones, those beside the checkout, those of your own.

`BUTD_PARITY=/folder pytest tests -k parity` runs the parity tests on other weights and inputs: a folder with
subfolders of the same names and files as `../shared/data/parity`.
"""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def parity_folders(kind: str) -> list[Path]:
    """Every folder that holds files of this kind: ours first."""
    beside = Path(os.environ.get("BUTD_PARITY", ROOT.parent / "shared" / "data" / "parity"))
    return [folder for folder in (ROOT / "tests" / "data" / kind, beside / kind) if folder.is_dir()]

"""Weights that people can get: a reference becomes files in the ordinary caches, with progress and a hash check.

`hf:OWNER/NAME[@REVISION]` and `timm:NAME` (a classifier) lie in Hugging Face's cache (HF_HOME, HF_ENDPOINT and
HF_HUB_OFFLINE count as always), `torchvision:NAME` and URLs in torch.hub's (TORCH_HOME). What is there is not
downloaded again.
"""

import hashlib
import logging
import re
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from urllib.error import HTTPError, URLError

from store_schema.errors import ButdError, CheckpointError, InputNotFoundError, UsageError
from store_schema.fingerprint import file_sha256

logger = logging.getLogger(__name__)

SCHEMES = ("hf:", "torchvision:", "timm:", "http://", "https://")
_TIMM_FILE = "model.safetensors"
_WEIGHTS = ["*.safetensors", "*.bin", "*.pth", "*.pt", "*.pkl", "*.caffemodel", "model.json"]


def is_reference(weights: str) -> bool:
    """Whether the text names weights to be fetched, rather than a path."""
    return weights.startswith(SCHEMES)


def shown(reference: str) -> str:
    """The reference without what may be secret: user, password and query of a URL."""
    if not reference.startswith(("http://", "https://")):
        return reference
    parts = urllib.parse.urlsplit(reference)
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def fetch(reference: str) -> Path:
    """The file, or for `hf:` the folder, that a reference names, downloaded where the cache lacks it.

    Errors: `UsageError` for a reference that names nothing; `ButdError` where the network fails; `CheckpointError`
    where what came is not what its hash says.
    """
    scheme, _, rest = reference.partition(":")
    match scheme:
        case "hf":
            return _fetch_repository(rest)
        case "timm":
            return _fetch_repository(timm_repository(reference), [_TIMM_FILE]) / _TIMM_FILE
        case "torchvision":
            return _fetch_url(torchvision_url(rest), "")
        case _:
            url, _, fragment = reference.partition("#")
            if fragment and not re.fullmatch(r"sha256=[0-9a-fA-F]{8,64}", fragment):
                raise UsageError(
                    f"#{fragment}: after a URL '#sha256=' and 8 to 64 hexadecimal digits are expected"
                )
            return _fetch_url(url, fragment.removeprefix("sha256=").lower())


def torchvision_url(name: str) -> str:
    """Where torchvision keeps the default weights of a model. Errors: `UsageError` for a name that it does not have."""
    from torchvision import models

    try:
        return str(models.get_model_weights(name).DEFAULT.url)
    except (ValueError, AttributeError) as error:
        raise UsageError(
            f"torchvision:{name}: torchvision has no such model; see 'butd detect --weights list'"
        ) from error


def timm_repository(name: str) -> str:
    """Where timm keeps the usual weights of a `timm:NAME`. Errors: `UsageError` where it has none, or no such model."""
    from stage1_detect.timm_models import timm_facts

    repository = timm_facts(name).hub_id
    if not repository:
        raise UsageError(
            f"{name}: timm has no weights of it on the hub; give a file, and --classifier {name}"
        )
    return repository


def _fetch_url(url: str, sha256: str) -> Path:
    """Download into torch.hub's folder; the hash is the one given, or the digits in the file's name."""
    import torch.hub

    name = Path(urllib.parse.urlsplit(url).path).name
    if not name:
        raise UsageError(f"{shown(url)}: the URL of a file expected")
    in_name = re.search(r"-([0-9a-f]{8,64})\.", name)
    expected = sha256 or (in_name.group(1) if in_name else "")
    other = hashlib.sha256(shown(url).encode()).hexdigest()[:8]  # two servers may have files of one name
    path = Path(torch.hub.get_dir()) / "checkpoints" / (name if in_name else f"{other}-{name}")
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        logger.info("downloading %s to %s", shown(url), path)
        try:
            torch.hub.download_url_to_file(url, str(path), hash_prefix=expected or None, progress=True)
        except HTTPError as error:
            error.close()
            raise UsageError(f"{shown(url)}: the server answers {error.code} {error.reason}") from error
        except (URLError, OSError) as error:
            reason = getattr(error, "reason", error)
            raise ButdError(
                f"{shown(url)}: cannot be downloaded ({reason}); give the path of a file"
            ) from error
        except RuntimeError as error:  # torch.hub: the hash differs; it keeps no file
            raise CheckpointError(f"{shown(url)}: not the file that was meant ({error})") from error
    found = file_sha256(path)
    if not found.startswith(expected):
        raise CheckpointError(
            f"{path}: its sha256 begins with {found[: len(expected)]}, {expected} is expected; remove the file to get "
            "it again"
        )
    if not expected:
        logger.warning(
            "%s has no hash to check; to pin it, write #sha256=%s behind the URL", shown(url), found
        )
    return path


def _fetch_repository(rest: str, patterns: Sequence[str] = _WEIGHTS) -> Path:
    """A repository's files that fit a pattern, in Hugging Face's cache, each checked against its name there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repository, _, revision = rest.partition("@")
    try:
        folder = Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(patterns)))
    except HFValidationError as error:
        raise UsageError(f"hf:{rest}: hf:OWNER/NAME or hf:OWNER/NAME@REVISION expected") from error
    except LocalEntryNotFoundError as error:
        raise ButdError(
            f"hf:{rest}: not in the cache, and the hub is not reached (offline?); give the path of a file"
        ) from error
    except HfHubHTTPError as error:
        raise UsageError(f"hf:{rest}: {str(error).splitlines()[0]}") from error
    except OSError as error:
        raise ButdError(f"hf:{rest}: cannot be downloaded ({error}); give the path of a file") from error
    files = [path for path in folder.rglob("*") if path.is_file()]
    if not files:
        raise InputNotFoundError(f"hf:{rest}: the repository holds no weights ({', '.join(patterns)})")
    for path in files:
        _check_blob(path)
    return folder


def _check_blob(path: Path) -> None:
    """Hugging Face's cache names a file after its sha256, or a small one after git's own hash."""
    blob = path.resolve()
    if len(blob.name) == 64:
        found = file_sha256(blob)
    elif len(blob.name) == 40:
        data = blob.read_bytes()
        found = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    else:
        return
    if found != blob.name:
        raise CheckpointError(
            f"{blob}: its hash is {found}, not what the hub promised; remove the file to get it again"
        )

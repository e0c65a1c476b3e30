"""Where a store lies, as an argument: a folder or a URL. Importing it is light."""

import argparse

from store_schema.errors import UsageError
from store_schema.remote import StorePath, store_path


def store_place(text: str) -> StorePath:
    """A folder or URL. A URL that cannot be one is refused without being shown: it may hold a secret."""
    try:
        return store_path(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None

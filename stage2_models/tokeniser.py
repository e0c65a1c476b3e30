"""Words of a text as the official caption evaluation sees them: Penn Treebank, without punctuation."""

import re

_TOKEN = re.compile(r"n't|'(?:s|m|re|ve|d|ll)\b|[a-z0-9]+(?:[-/.,:][a-z0-9]+)*", re.IGNORECASE)


def tokenise(text: str) -> list[str]:
    """Split a text into words."""
    return [token.lower() for token in _TOKEN.findall(re.sub(r"n't\b", " n't", text))]

"""An owner's word on which text a figure was found on, that tells others nothing of the text.

HMAC-SHA256 of the documents' digests in order, under a key that stays here: the same text gives the same commitment,
so figures of two campaigns can be compared, and nobody else can try out which text it is.
"""

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from pathlib import Path

from common.files import write_secret

_KEY_BYTES = 32


def commitment_key(path: Path) -> Path:
    """Where the key is; made when it is needed first."""
    if not path.exists():
        write_secret(path, secrets.token_bytes(_KEY_BYTES))
    return path


def commit(document_digests: Iterable[str], *, key: bytes) -> str:
    """The commitment to some documents, in whatever order they come."""
    text = "\n".join(sorted(document_digests))
    return f"sha256:{hmac.new(key, text.encode(), hashlib.sha256).hexdigest()}"

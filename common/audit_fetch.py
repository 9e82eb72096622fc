"""A published log by its address: what an audit of the log and of all manifests reads, fetched over HTTP.

Any file server may carry it. Nothing that comes is believed: entries are fetched for a checkpoint that the log signed
alone, sizes are limited, each and together, and the audit checks the rest.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Final
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from common.audit_files import ROOT_NAME
from common.errors import NotFoundError, TooLargeError, UnavailableError
from common.http import check_address
from common.trust.manifest import MANIFEST_NAME
from common.trust.note import MAX_NOTE_BYTES
from common.trust.quorum import MAX_COSIGNED_BYTES
from common.trust.root import TrustedRoot
from common.trust.tiles import (
    BUNDLE_ENTRIES,
    CHECKPOINT_NAME,
    COSIGNED_NAME,
    MAX_ENTRY_BYTES,
    bundle_path,
    format_bundle,
    parse_bundle,
)
from common.trust.verify import StepFailed, check_checkpoint

MAX_FILE_BYTES: Final = 64 * 2**20
MAX_BUNDLE_BYTES: Final = BUNDLE_ENTRIES * (2 + MAX_ENTRY_BYTES)
MAX_TOTAL_BYTES: Final = 8 * 2**30
_TIMEOUT_S: Final = 30.0

Get = Callable[[str, int], bytes]
"""(path under the address, most bytes) -> content."""


def is_address(text: str) -> bool:
    """Whether somebody who says where the published files are means a server."""
    return text.startswith(("http://", "https://"))


def fetch_log(address: str, directory: Path, *, root: TrustedRoot | None = None, most: int = MAX_TOTAL_BYTES) -> None:
    """Fetch the trusted root and the log into an empty directory; no entries where the log of `root`, or else of the
    root that is published, did not sign the checkpoint: the audit says so.

    Raises:
        MalformedError: the address is none, or the log is not as its checkpoint says.
        NotFoundError: a file that must be published is not there.
        UnavailableError: the server cannot be reached.
        TooLargeError: a file is larger than such a file may be, or all of them are more than `most` bytes.
    """
    get = _getter(address, most)
    with suppress(NotFoundError):  # where nobody cosigned anything yet
        _write(directory, f"log/{COSIGNED_NAME}", get(f"log/{COSIGNED_NAME}", MAX_COSIGNED_BYTES))
    checkpoint = get(f"log/{CHECKPOINT_NAME}", MAX_NOTE_BYTES)
    published = get(ROOT_NAME, MAX_NOTE_BYTES)
    _write(directory, ROOT_NAME, published)
    _write(directory, f"log/{CHECKPOINT_NAME}", checkpoint)
    try:
        size = check_checkpoint(root or TrustedRoot.parse(published), checkpoint).size
    except StepFailed:
        return
    for bundle in range(-(-size // BUNDLE_ENTRIES)):
        width = min(BUNDLE_ENTRIES, size - bundle * BUNDLE_ENTRIES)
        _write(directory, f"log/{bundle_path(bundle, width=width)}", _bundle(get, bundle, width))


def _bundle(get: Get, bundle: int, width: int) -> bytes:
    """An entry bundle; once it is full, its partial ones need not be there any more."""
    try:
        return get(f"log/{bundle_path(bundle, width=width)}", MAX_BUNDLE_BYTES)
    except NotFoundError:
        if width == BUNDLE_ENTRIES:
            raise
    return format_bundle(parse_bundle(get(f"log/{bundle_path(bundle)}", MAX_BUNDLE_BYTES))[:width])


def fetch_manifests(address: str, directory: Path, names: Iterable[Path]) -> None:
    """Fetch the manifests of these published directories; errors are those of `fetch_log`."""
    get = _getter(address, MAX_TOTAL_BYTES)
    for named in names:
        name = f"{named.relative_to(directory).as_posix()}/{MANIFEST_NAME}"
        _write(directory, name, get(name, MAX_FILE_BYTES))


def _write(directory: Path, name: str, data: bytes) -> None:
    target = directory / PurePosixPath(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)


def _getter(address: str, most_in_all: int) -> Get:
    root, left = check_address(address), most_in_all

    def get(name: str, most: int) -> bytes:
        try:
            with urlopen(Request(f"{root}/{name}"), timeout=_TIMEOUT_S) as reply:  # noqa: S310 - http and https alone
                data: bytes = reply.read(most + 1)
        except HTTPError as error:
            if error.code in (404, 410):
                raise NotFoundError(f"{root}/{name} is not there; is this a coordinator's public directory?") from error
            raise UnavailableError(f"{root}/{name}: the server answers {error.code}; try again") from error
        except (URLError, OSError, ValueError) as error:
            raise UnavailableError(f"{root}/{name} cannot be fetched ({error}); try again") from error
        nonlocal left
        left -= len(data)
        if len(data) > most:
            raise TooLargeError(f"{root}/{name} has more than the {most} bytes that such a file may have")
        if left < 0:
            raise TooLargeError(f"{root} has sent more than {most_in_all} bytes; audit a copy of the directory instead")
        return data

    return get

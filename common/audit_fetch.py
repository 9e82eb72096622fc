"""A published log by its address: what an audit of the log and of all manifests reads, fetched over HTTP.

Any file server may carry it. Nothing that comes is believed: sizes are limited, and the audit checks the rest.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Final
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from common.audit import ROOT_NAME
from common.errors import NotFoundError, TooLargeError, UnavailableError
from common.http import check_address
from common.trust.manifest import MANIFEST_NAME
from common.trust.note import MAX_NOTE_BYTES, Checkpoint, Note
from common.trust.quorum import MAX_COSIGNED_BYTES
from common.trust.tiles import BUNDLE_ENTRIES, CHECKPOINT_NAME, COSIGNED_NAME, bundle_path, format_bundle, parse_bundle

MAX_FILE_BYTES: Final = 64 * 2**20
_TIMEOUT_S: Final = 30.0

Get = Callable[[str, int], bytes]
"""(path under the address, most bytes) -> content."""


def is_address(text: str) -> bool:
    """Whether somebody who says where the published files are means a server."""
    return text.startswith(("http://", "https://"))


def fetch_log(address: str, directory: Path) -> None:
    """Fetch the trusted root and the log into an empty directory.

    Raises:
        MalformedError: the address is none, or the log is not as its checkpoint says.
        NotFoundError: a file that must be published is not there.
        UnavailableError: the server cannot be reached.
        TooLargeError: a file is larger than such a file may be.
    """
    get = _getter(address)
    with suppress(NotFoundError):  # where nobody cosigned anything yet
        _write(directory, f"log/{COSIGNED_NAME}", get(f"log/{COSIGNED_NAME}", MAX_COSIGNED_BYTES))
    checkpoint = get(f"log/{CHECKPOINT_NAME}", MAX_NOTE_BYTES)
    _write(directory, ROOT_NAME, get(ROOT_NAME, MAX_NOTE_BYTES))
    size = Checkpoint.parse(Note.parse(checkpoint).text).size
    for bundle in range(-(-size // BUNDLE_ENTRIES)):
        width = min(BUNDLE_ENTRIES, size - bundle * BUNDLE_ENTRIES)
        _write(directory, f"log/{bundle_path(bundle, width=width)}", _bundle(get, bundle, width))
    _write(directory, f"log/{CHECKPOINT_NAME}", checkpoint)


def _bundle(get: Get, bundle: int, width: int) -> bytes:
    """An entry bundle; once it is full, its partial ones need not be there any more."""
    try:
        return get(f"log/{bundle_path(bundle, width=width)}", MAX_FILE_BYTES)
    except NotFoundError:
        if width == BUNDLE_ENTRIES:
            raise
    return format_bundle(parse_bundle(get(f"log/{bundle_path(bundle)}", MAX_FILE_BYTES))[:width])


def fetch_manifests(address: str, directory: Path, names: Iterable[Path]) -> None:
    """Fetch the manifests of these published directories; errors are those of `fetch_log`."""
    get = _getter(address)
    for named in names:
        name = f"{named.relative_to(directory).as_posix()}/{MANIFEST_NAME}"
        _write(directory, name, get(name, MAX_FILE_BYTES))


def _write(directory: Path, name: str, data: bytes) -> None:
    target = directory / PurePosixPath(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)


def _getter(address: str) -> Get:
    root = check_address(address)

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
        if len(data) > most:
            raise TooLargeError(f"{root}/{name} has more than the {most} bytes that such a file may have")
        return data

    return get

"""Small POST requests over HTTP or HTTPS, with every size and time limited."""

from typing import Final
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from common.errors import MalformedError, UnavailableError

_TIMEOUT_S: Final = 20.0


def check_address(address: str) -> str:
    """`address` without a slash at its end, if something can be posted below it; `MalformedError` else."""
    try:
        parts = urlsplit(address)
        is_good = parts.scheme in ("http", "https") and parts.hostname and not parts.query and not parts.fragment
        _ = parts.port
    except ValueError:
        is_good = False
    if not is_good:
        raise MalformedError(f"{address[:120]!r} is no address such as https://concord.example/public")
    return address.rstrip("/")


def post(address: str, body: bytes, *, most: int) -> tuple[int, str, bytes]:
    """Status, content type and at most so many bytes of the answer.

    Raises:
        MalformedError: the address is none.
        UnavailableError: nobody answers there.
    """
    headers = {"Content-Type": "text/plain; charset=utf-8"}
    target = check_address(address)
    request = Request(target, data=body, headers=headers, method="POST")  # noqa: S310 - http and https alone
    try:
        with urlopen(request, timeout=_TIMEOUT_S) as reply:  # noqa: S310 - http and https alone
            return reply.status, reply.headers.get_content_type(), reply.read(most)
    except HTTPError as error:
        return error.code, error.headers.get_content_type(), error.read(most)
    except (URLError, OSError, ValueError) as error:
        raise UnavailableError(f"{address} cannot be reached: {error}") from error

"""gRPC with mutual TLS: channel and server, and the one place where errors become statuses and back.

TLS 1.3 alone: gRPC's default also takes 1.2, so the cipher list names only an RSA suite of 1.2, which the ECDSA
certificates used here cannot serve; every call asserts the version as well. Certificates say who a peer is by their
URI name (see `common/trust/pki.py`); whether that party may call now is asked again on every call, because a live
connection outlives its certificate.
"""

import logging
import os
import resource
import sys
from collections.abc import Callable, Generator, Iterator
from concurrent import futures
from contextvars import ContextVar
from threading import Thread
from typing import Any, Final, NoReturn, TypeVar

os.environ.setdefault("GRPC_SSL_CIPHER_SUITES", "ECDHE-RSA-AES256-GCM-SHA384")  # read once, when grpc is imported
os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # a refused handshake is reported by the call that fails, once

import grpc
from google.protobuf.message import DecodeError

from common.errors import (
    ConcordError,
    ConflictError,
    ConsentError,
    MalformedError,
    NotFoundError,
    NotPermittedError,
    TooLargeError,
    UnavailableError,
    VerificationError,
)
from common.rpc.identity import TlsIdentity
from common.rpc.liveness import Liveness

logger = logging.getLogger(__name__)

_STATUS: Final[dict[type[ConcordError], grpc.StatusCode]] = {
    MalformedError: grpc.StatusCode.INVALID_ARGUMENT,
    VerificationError: grpc.StatusCode.DATA_LOSS,
    NotFoundError: grpc.StatusCode.NOT_FOUND,
    ConflictError: grpc.StatusCode.ABORTED,
    NotPermittedError: grpc.StatusCode.PERMISSION_DENIED,
    ConsentError: grpc.StatusCode.FAILED_PRECONDITION,
    TooLargeError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    UnavailableError: grpc.StatusCode.UNAVAILABLE,
}
_CLASSES: Final = {kind.__name__: kind for kind in _STATUS}
_ERROR_KEY: Final = "concord-error"
PUT_CHUNKS: Final = "/concord.v1.Transfer/PutChunks"
FETCH: Final = "/concord.v1.Transfer/Fetch"
_SERVED_AS_BYTES: Final = (FETCH, "/concord.v1.Transfer/ReadPublished")
"""Requests of the one and replies of the other come and go as bytes, for `chunk_message`: a parser would copy every
megabyte twice."""
_MAX_MESSAGE_BYTES: Final = 4 * 1024 * 1024
_MAX_CONNECTION_AGE_MS: Final = 60 * 60 * 1000
_GRACE_MS: Final = 3_600_000
"""How long a call may outlive that; checking nine gigabytes takes a while."""
_ANONYMOUS_AGE_MS: Final = 20_000
_ANONYMOUS_GRACE_MS: Final = 10_000
HANDSHAKE_MS: Final = 20_000
"""Who has not said by then who it is is sent away; gRPC alone would wait for two minutes."""
_MOST_CONNECTIONS: Final = 16_384
"""Each that is half open takes about 60 kB: a gigabyte in all."""
_KEPT_FILES: Final = 512
"""Open files that connections leave to the registry, to uploads and to what is published."""
KEEPALIVE_MS: Final = 30_000
"""How often the other end is asked whether it is there, while calls go on."""
KEEPALIVE_TIMEOUT_MS: Final = 20_000
"""A connection whose other end does not answer that for so long is dead: its address may have changed. gRPC's own pings
come first and wait for a minute: theirs is set as well."""

_CLOSING_S: Final = 20.0

STREAM_SILENCE_S: Final = 120.0
"""How long a stream may bring nothing before it is given up; longer than the other end waits, so that it ends first."""
_liveness = Liveness(lambda: STREAM_SILENCE_S)

Authenticate = Callable[[bytes | None, str], str]
"""(peer's PEM certificate or None, full method name) -> party id; raises NotPermittedError."""

_caller: ContextVar[str] = ContextVar("caller")
_again: ContextVar[Callable[[], object]] = ContextVar("again")
_shown: ContextVar[bytes | None] = ContextVar("shown")
_Request = TypeVar("_Request")
_Reply = TypeVar("_Reply")


def caller() -> str:
    """The party whose call is being served on this thread."""
    return _caller.get()


def shown_certificate() -> bytes | None:
    """The certificate that the caller has shown, PEM; None where none was needed."""
    return _shown.get()


def authenticate_again() -> Callable[[], object]:
    """What a long stream calls now and then: it raises where its caller may not call any more."""
    return _again.get()


# Server


def make_server(authenticate: Authenticate, *, threads: int, anonymous: bool) -> grpc.Server:
    """A server whose every call is authenticated and whose errors cross as `concord-error`.

    Where callers are `anonymous`, connections end soon whatever they do: one that sends nothing holds a thread.
    """
    age_ms, grace_ms = (_ANONYMOUS_AGE_MS, _ANONYMOUS_GRACE_MS) if anonymous else (_MAX_CONNECTION_AGE_MS, _GRACE_MS)
    options = [
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
        ("grpc.max_allowed_incoming_connections", most_connections(anonymous=anonymous)),
        ("grpc.max_connection_age_ms", age_ms),
        ("grpc.max_connection_age_grace_ms", grace_ms),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_MS // 2),
    ]
    return grpc.server(
        futures.ThreadPoolExecutor(max_workers=threads, thread_name_prefix="rpc"),
        interceptors=[_Boundary(authenticate)],
        options=options,
        maximum_concurrent_rpcs=4 * threads,
    )


def most_connections(*, anonymous: bool) -> int:
    """How many connections a port takes; three quarters of what there is room for are the members'."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    room = _MOST_CONNECTIONS
    if files != resource.RLIM_INFINITY:
        room = min(room, max(files - _KEPT_FILES, files // 2))
    return max(1, room // 4 if anonymous else room * 3 // 4)


def listen(
    server: grpc.Server, address: str, *, tls: TlsIdentity | Callable[[], TlsIdentity], require_client: bool
) -> int:
    """Open `address` (`host:port`, port 0 for any free one) and return the port. Where `tls` is a function, it is asked
    at every handshake what to show and trust now.

    Raises:
        UnavailableError: the port is in use or may not be opened.
    """
    ask = tls if callable(tls) else lambda: tls
    credentials = grpc.dynamic_ssl_server_credentials(
        _configuration(ask(), require_client),
        _Asking(ask, require_client),
        require_client_authentication=require_client,
    )
    try:
        return int(server.add_secure_port(address, credentials))
    except RuntimeError as error:
        raise UnavailableError(
            f"{address} cannot be opened: another program uses it or it may not be used here; choose another port"
        ) from error


def _configuration(tls: TlsIdentity, require_client: bool) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(tls.key, tls.certificate)], root_certificates=tls.authority if require_client else None
    )


class _Asking:
    """What is shown at a handshake; None, for no change, where it cannot be said."""

    def __init__(self, ask: Callable[[], TlsIdentity], require_client: bool) -> None:
        self._ask, self._require_client = ask, require_client
        self._last = ask()

    def __call__(self) -> grpc.ServerCertificateConfiguration | None:
        try:
            tls = self._ask()
        except Exception:  # on a thread of gRPC's, which would show nothing from then on
            logger.exception("what is shown at handshakes cannot be read; it stays what it was")
            return None
        if tls == self._last:
            return None
        self._last = tls
        return _configuration(tls, self._require_client)


class _Boundary(grpc.ServerInterceptor):
    """Says who calls, on every call, and turns what fails into statuses; nothing else does either."""

    def __init__(self, authenticate: Authenticate) -> None:
        self._authenticate = authenticate

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        handler = continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        make = _HANDLERS[handler.request_streaming, handler.response_streaming]
        behaviour = getattr(handler, make.__name__.removesuffix("_rpc_method_handler"))
        if method != PUT_CHUNKS:
            assert not handler.request_streaming, "chunks are the only stream of requests"
            behaviour = _reading(behaviour, handler.request_deserializer, method)
        wrapped = self._streaming(behaviour, method) if handler.response_streaming else self._unary(behaviour, method)
        return make(
            wrapped,
            request_deserializer=None,
            response_serializer=None if method in _SERVED_AS_BYTES else handler.response_serializer,
        )

    def _unary(
        self, behaviour: Callable[[_Request, grpc.ServicerContext], _Reply], method: str
    ) -> Callable[[_Request, grpc.ServicerContext], _Reply]:
        def serve(request: _Request, context: grpc.ServicerContext) -> _Reply:
            try:
                certificate = _peer_certificate(context)
                token = _caller.set(self._authenticate(certificate, method))
                shown = _shown.set(certificate)
                try:
                    reply = behaviour(request, context)
                finally:
                    _caller.reset(token)
                    _shown.reset(shown)
            except Exception as error:  # the boundary: a peer never sees more than a name and a message
                status, message, metadata = _status_of(error, method)
            else:
                sys.audit("concord.point", f"answer {method}")
                return reply
            return _abort(context, status, message, metadata)

        return serve

    def _streaming(
        self, behaviour: Callable[[_Request, grpc.ServicerContext], Iterator[_Reply]], method: str
    ) -> Callable[[_Request, grpc.ServicerContext], Iterator[_Reply]]:
        def serve(request: _Request, context: grpc.ServicerContext) -> Iterator[_Reply]:
            try:
                certificate = _peer_certificate(context)
                token = _caller.set(self._authenticate(certificate, method))
                again = _again.set(lambda: self._authenticate(certificate, method))
                try:
                    replies = behaviour(request, context)
                finally:
                    _caller.reset(token)
                    _again.reset(again)
                yield from replies
            except GeneratorExit:
                raise
            except Exception as error:  # the boundary, as above
                status, message, metadata = _status_of(error, method)
            else:
                sys.audit("concord.point", f"answer {method}")
                return
            _abort(context, status, message, metadata)

        return serve


def _reading(
    behaviour: Callable[[_Request, grpc.ServicerContext], _Reply], parse: Callable[[bytes], _Request], method: str
) -> Callable[[bytes, grpc.ServicerContext], _Reply]:
    """The same for a request in bytes: gRPC itself calls one that it cannot read an error of ours."""

    def serve(data: bytes, context: grpc.ServicerContext) -> _Reply:
        try:
            request = parse(data)
        except DecodeError as error:
            raise MalformedError(
                f"{len(data)} bytes came that are no request of {method}; use a client of this version"
            ) from error
        return behaviour(request, context)

    return serve


_HANDLERS: Final = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def _peer_certificate(context: grpc.ServicerContext) -> bytes | None:
    facts = context.auth_context()
    if facts.get("ssl_tls_version") not in ([b"TLSv1.3"], None):
        raise NotPermittedError(f"{facts['ssl_tls_version'][0].decode()} is not accepted; use TLS 1.3")
    return next(iter(facts.get("x509_pem_cert", [])), None)


def _status_of(error: Exception, method: str) -> tuple[grpc.StatusCode, str, tuple[tuple[str, str], ...]]:
    if isinstance(error, grpc.RpcError):  # the line broke, or whoever called has left: nobody reads the answer
        logger.info("%s ended before its time", method)
        return grpc.StatusCode.CANCELLED, "the call ended before its time", ()
    for kind in type(error).__mro__:
        if kind in _STATUS:
            logger.info("%s refused: %s: %s", method, kind.__name__, error)
            return _STATUS[kind], str(error), ((_ERROR_KEY, kind.__name__),)
    logger.exception("%s failed", method, exc_info=error)
    return grpc.StatusCode.INTERNAL, "internal error", ()


def _abort(
    context: grpc.ServicerContext, status: grpc.StatusCode, message: str, metadata: tuple[tuple[str, str], ...]
) -> NoReturn:
    context.set_trailing_metadata(metadata)
    context.abort(status, message)
    raise AssertionError("abort raises")


# Client


def close_channel(channel: grpc.Channel) -> None:
    """Close a channel and what goes on in it. gRPC waits for its own thread to have seen every call's end, once in
    thousands of times in vain; nobody waits for it for long here."""
    closing = Thread(target=channel.close, name="closing", daemon=True)
    closing.start()
    closing.join(_CLOSING_S)
    if closing.is_alive():
        logger.warning("a connection does not close after %g s; going on without it", _CLOSING_S)


def open_channel(target: str, *, authority: bytes, tls: TlsIdentity | None) -> grpc.Channel:
    """A channel to `target` (`host:port`) that trusts `authority` alone; without `tls` the caller stays anonymous."""
    credentials = grpc.ssl_channel_credentials(
        root_certificates=authority,
        private_key=tls.key if tls else None,
        certificate_chain=tls.certificate if tls else None,
    )
    options = [
        ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.enable_retries", 0),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 5_000),
    ]
    return grpc.secure_channel(target, credentials, options=options)


def call(method: Callable[..., _Reply], request: object, *, timeout_s: float) -> _Reply:
    """One call; a failure is raised as the class the server raised.

    Raises:
        ConcordError: as the server's; `UnavailableError` where it could not be reached or did not answer in time.
    """
    try:
        return method(request, timeout=timeout_s)
    except grpc.RpcError as error:
        raise error_of(error) from error


def stream(method: Callable[..., Any], request: object) -> Generator[Any, None, None]:
    """The replies of a streaming call, errors as in `call`. It has no deadline: it ends when it stands still, or when
    nobody asks for more.
    """
    replies = method(request)
    try:
        with _liveness.watching(replies.cancel) as moved:
            for reply in replies:
                moved()
                yield reply
                moved()
    except grpc.RpcError as error:
        raise error_of(error) from error
    finally:
        replies.cancel()


def error_of(error: grpc.RpcError) -> ConcordError:
    """What a failed call means on this side."""
    status, details = error.code(), error.details() or ""
    named = dict(error.trailing_metadata() or ()).get(_ERROR_KEY)
    if isinstance(named, str) and named in _CLASSES:
        return _CLASSES[named](details)
    if status in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED):
        return UnavailableError(f"the coordinator does not answer: {_brief(details)}")
    if status == grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
        return TooLargeError(f"a message has at most {_MAX_MESSAGE_BYTES} bytes: {_brief(details)}")
    if status == grpc.StatusCode.RESOURCE_EXHAUSTED:
        return UnavailableError(f"the coordinator is busy: {_brief(details)}")
    if status == grpc.StatusCode.UNIMPLEMENTED:
        return ConcordError(
            f"the coordinator does not take this call: {_brief(details)}; use versions that fit together"
        )
    return ConcordError(f"the coordinator failed ({status.name}): {details}; its own output says why")


def _brief(details: str) -> str:
    if "CERTIFICATE_VERIFY_FAILED" in details:
        return (
            "its certificate was not issued by the pinned certificate authority; if the consortium changed its root, "
            "ask the admin for an invitation"
        )
    if "Connection refused" in details:
        return "nothing listens at its address; is `concord coordinator serve` running there?"
    return details[:200]

"""Every failure Concord names.

One small tree: a caller catches the class whose remedy it knows. How each class crosses the wire is one table in
`common/rpc/channel.py`. A message says what is wrong, with the offending value, and what to do next.
"""


class ConcordError(Exception):
    """Base of every failure Concord names; the CLI prints its message without a traceback."""


class MalformedError(ConcordError):
    """Bytes from outside do not parse."""


class VerificationError(ConcordError):
    """A signature, digest, inclusion or consistency proof does not hold; the message carries the step number."""


class NotFoundError(ConcordError):
    """There is no such thing."""


class ConflictError(ConcordError):
    """The thing exists but is in the wrong state for this call."""


class NotPermittedError(ConcordError):
    """This party may not do this."""


class ConsentError(ConcordError):
    """The consent this needs is absent, expired or revoked."""


class TooLargeError(ConcordError):
    """A declared or configured limit is exceeded."""


class UnavailableError(ConcordError):
    """Not now; the same call may work later. The only class a client retries."""


class NoRoomError(UnavailableError):
    """A disk has no room for this; it works once somebody has freed some. Crosses the wire as its base."""


class EgressDeniedError(ConcordError):
    """Something other than this owner's expert was about to leave the building. Local: never crosses the wire."""


class JobFailedError(ConcordError):
    """A training or evaluation subprocess failed. Local: never crosses the wire."""


class ApprovalNeededError(ConcordError):
    """Something waits for a person to approve that it leaves. Local: never crosses the wire."""


class SignatureNeededError(ConcordError):
    """A statement waits for a signature by a key that is not on this machine. Local: never crosses the wire."""

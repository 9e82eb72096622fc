"""Who somebody is: the URI that a certificate bears, and the name that calls are known by.

SPIFFE's form, `spiffe://<federation>/<role>/<id>`, or `spiffe://<federation>/coordinator`.
"""

import re
from dataclasses import dataclass
from typing import Final, Literal, Self, get_args

from common.errors import MalformedError

Role = Literal["owner", "admin", "auditor", "witness", "coordinator"]
OWNER: Final = "owner"
COORDINATOR: Final = "coordinator"
INVITED: Final = tuple(role for role in get_args(Role) if role != COORDINATOR)
"""Roles that somebody may be invited in."""

_LABEL: Final = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
DNS_NAME: Final = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")
_PARTY: Final = re.compile(r"[a-z][a-z0-9-]{0,62}")
_URI: Final = re.compile(
    rf"spiffe://(?P<federation>[^/]+)/(?:(?P<coordinator>coordinator)|(?P<role>{'|'.join(INVITED)})/(?P<party>[^/]+))"
)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a certificate names; `str()` is its URI.

    The coordinator's party is always `coordinator`, which nobody else may be called.

    Raises:
        ValueError: the federation is not a lower-case DNS name, the party not `[a-z][a-z0-9-]{0,62}` or not the role's.
    """

    federation: str
    role: Role
    party: str

    def __post_init__(self) -> None:
        check_federation(self.federation)
        if not _PARTY.fullmatch(self.party):
            raise ValueError(f"party {self.party[:80]!r} is not a letter, then at most 62 of a-z, 0-9 and -")
        if self.role not in get_args(Role) or (self.role == COORDINATOR) != (self.party == COORDINATOR):
            raise ValueError(f"party {self.party!r} cannot have the role {self.role!r}")

    @classmethod
    def coordinator(cls, federation: str) -> Self:
        """The federation's coordinator."""
        return cls(federation, COORDINATOR, COORDINATOR)

    @classmethod
    def owner(cls, federation: str, *, party: str) -> Self:
        """One of the federation's data owners."""
        return cls(federation, OWNER, party)

    @classmethod
    def of_caller(cls, federation: str, caller: str) -> Self:
        """The inverse of `caller`; errors as the constructor's."""
        role, separator, party = caller.rpartition("/")
        return cls(federation, role if separator else OWNER, party)  # type: ignore[arg-type]

    @classmethod
    def parse(cls, uri: str) -> Self:
        """Read the URI strictly.

        Raises:
            MalformedError: it is not exactly one of the two forms.
        """
        match = _URI.fullmatch(uri)
        if not match:
            raise MalformedError(
                f"identity {uri[:120]!r}: expected spiffe://<federation>/owner/<id> or .../coordinator"
            )
        try:
            if match["coordinator"]:
                return cls.coordinator(match["federation"])
            return cls(match["federation"], match["role"], match["party"])  # type: ignore[arg-type]
        except ValueError as error:
            raise MalformedError(f"identity {uri[:120]!r}: {error}") from error

    @property
    def caller(self) -> str:
        """How calls of theirs are known: an owner by its party, as in the log; others with their role before it, so
        that none of them is taken for an owner."""
        return self.party if self.role in (OWNER, COORDINATOR) else f"{self.role}/{self.party}"

    def __str__(self) -> str:
        path = COORDINATOR if self.role == COORDINATOR else f"{self.role}/{self.party}"
        return f"spiffe://{self.federation}/{path}"


def check_federation(federation: str) -> None:
    """Raise `ValueError` unless this may name a federation."""
    if not DNS_NAME.fullmatch(federation):
        raise ValueError(f"federation {federation[:80]!r} is not a lower-case DNS name")

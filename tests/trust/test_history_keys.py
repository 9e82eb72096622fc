"""An owner's keys: one more, one less, and who signs with what."""

import pytest

from common.errors import ConflictError, MalformedError, NotFoundError, NotPermittedError, VerificationError
from common.trust.cosignature import Witness
from common.trust.history import replay
from common.trust.note import SigningKey
from common.trust.statements import COORDINATOR
from tests.trust.telling import COORDINATOR_KEY, FEDERATION, ROOT, Telling, key_of, refused


def adds(log: Telling, new: SigningKey, **fields: object) -> None:
    """The archive signs with `new` too."""
    signers = [log.keys["archive"], new]
    log.says("archive", "owner.key.add", **{"public_key": str(new.verifier), "signers": signers, **fields})


def revokes(log: Telling, key: SigningKey, *, by: SigningKey) -> None:
    """The archive signs with `key` no longer."""
    log.says("archive", "owner.key.revoke", revoked_key_id=key.verifier.key_id, signers=[by], key_id=by.verifier.key_id)


def test_keys_change_without_a_break(log: Telling) -> None:
    old, new = log.keys["archive"], key_of("archive")
    adds(log, new)
    log.consents("archive")  # with the old one
    revokes(log, old, by=new)
    refused(log, NotPermittedError, "does not sign for archive any more", lambda: log.consents("archive"))
    log.keys["archive"] = new
    log.consents("archive")
    assert replay(ROOT, log.entries) == log.history


def test_a_key_revokes_itself_where_another_is_left(log: Telling) -> None:
    old, new = log.keys["archive"], key_of("archive")
    refused(log, ConflictError, "the last key of archive; add another first", lambda: revokes(log, old, by=old))
    adds(log, new)
    revokes(log, old, by=old)
    refused(log, ConflictError, "the last key of archive", lambda: revokes(log, new, by=new))


@pytest.mark.parametrize("signed_by", [[0], [1]])
def test_a_key_is_added_by_both_keys(signed_by: list[int], log: Telling) -> None:
    new = key_of("archive")
    signers = [[log.keys["archive"], new][i] for i in signed_by]
    refused(log, VerificationError, "0 signatures by", lambda: adds(log, new, signers=signers))


def test_a_key_is_added_by_nobody_else(log: Telling) -> None:
    new = key_of("archive")
    signers = [COORDINATOR_KEY, new]
    refused(log, VerificationError, "0 signatures by", lambda: adds(log, new, signers=signers))
    signers = [log.keys["archive"], new, COORDINATOR_KEY]
    refused(log, MalformedError, "carries 3 signatures; 2 belong", lambda: adds(log, new, signers=signers))


def test_no_key_comes_twice_nor_comes_back(log: Telling) -> None:
    old, new = log.keys["archive"], key_of("archive")
    adds(log, new)
    third = [old, new]
    refused(log, ConflictError, "is or was a key of archive", lambda: adds(log, new, signers=third))
    revokes(log, new, by=old)
    refused(log, ConflictError, "is or was a key of archive", lambda: adds(log, new, signers=third))


def test_an_added_key_is_called_after_its_owner(log: Telling) -> None:
    refused(log, MalformedError, "may not be called", lambda: adds(log, key_of("hospital")))


def test_only_a_key_that_signs_is_revoked(log: Telling) -> None:
    old = log.keys["archive"]
    adds(log, key_of("archive"))
    act = lambda: revokes(log, key_of("archive"), by=old)  # noqa: E731
    refused(log, NotFoundError, "does not sign for archive", act)


def test_the_coordinator_has_its_key_by_the_trusted_root(log: Telling) -> None:
    new = SigningKey.generate(f"health.example/owner/{COORDINATOR}")
    signers = [COORDINATOR_KEY, new]
    act = lambda: log.says(COORDINATOR, "owner.key.add", public_key=str(new.verifier), signers=signers)  # noqa: E731
    refused(log, NotPermittedError, "only a data owner may say", act)
    act = lambda: log.says(COORDINATOR, "owner.key.revoke", revoked_key_id=COORDINATOR_KEY.verifier.key_id)  # noqa: E731
    refused(log, NotPermittedError, "only a data owner may say", act)


def _named(key: SigningKey, name: str) -> SigningKey:
    """The same key by another name."""
    return SigningKey(name, key.private_key)


def test_no_key_does_two_things(log: Telling) -> None:
    """What a daemon signs day and night, nobody takes for a consent; nor does the coordinator sign for owners."""
    own = f"{FEDERATION}/owner/hospital"
    witness = SigningKey.generate(f"{FEDERATION}/witness/hospital")
    ours = _named(COORDINATOR_KEY, own)
    log.keys["hospital"] = ours
    refused(log, ConflictError, "of hospital is the coordinator's; make a new one", lambda: log.joins("hospital"))
    log.keys["hospital"] = _named(witness, own)
    line = str(Witness.of(witness))
    act = lambda: log.joins("hospital", witness_key=line)  # noqa: E731
    refused(log, ConflictError, "witness key of hospital signs something else too", act)
    log.keys["hospital"] = key_of("hospital")
    of_coordinator = str(Witness.of(_named(COORDINATOR_KEY, witness.name)))
    act = lambda: log.joins("hospital", witness_key=of_coordinator)  # noqa: E731
    refused(log, ConflictError, "witness key of hospital signs something else too", act)
    log.joins("hospital", witness_key=line)
    for key, why in ((ours, "is the coordinator's"), (_named(witness, own), "is its witness key too")):
        signers = [log.keys["hospital"], key]
        add = lambda key=key, signers=signers: log.says("hospital", "owner.key.add", public_key=str(key.verifier),  # noqa: E731
                                                        signers=signers)  # fmt: skip
        refused(log, ConflictError, f"of hospital {why}", add)

"""API keys: hashed at rest, recognised, revoked, expired."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from service.auth.keyring import Keyring, digest_of, parse_credential
from service.auth.principal import Scope
from service.control import keys
from service.control.plane import ControlPlane
from service.errors import NotFound, Unauthenticated

READ = frozenset({Scope.READ})


async def test_a_key_is_recognised_and_its_secret_is_nowhere(control: ControlPlane) -> None:
    ring = Keyring(control.redis, control.kept)
    key, text = await ring.create("ann", READ, label="laptop")
    assert await ring.recognise(*parse_credential(text)[1:]) == key
    secret = text.split("_", 2)[2]
    stored = await control.redis.get(keys.api_key(key.id))
    assert secret.encode() not in stored and digest_of(secret).encode() in stored
    assert [one.label for one in await ring.list()] == ["laptop"]


@pytest.mark.parametrize("text", ["", "mk", "mk_1_2", "sk_" + "0" * 12 + "_" + "a" * 43, "mk_\x00"])
def test_what_is_no_key_is_told_so(text: str) -> None:
    with pytest.raises(Unauthenticated, match=r"reads mk_.*a share link begins with ms_"):
        parse_credential(text)


async def test_wrong_unknown_revoked_and_expired_keys_get_one_answer(control: ControlPlane) -> None:
    ring = Keyring(control.redis, control.kept)
    key, text = await ring.create("ann", READ)
    late, late_text = await ring.create("ann", READ, lifetime_s=0)
    digest = parse_credential(text)[2]
    tried = [
        (key.id, digest_of("x")),
        ("0" * 12, digest),
        (late.id, parse_credential(late_text)[2]),
    ]
    await ring.recognise(key.id, digest)
    await ring.revoke(key.id)
    words = set()
    for name, tried_digest in [*tried, (key.id, digest)]:
        with pytest.raises(Unauthenticated) as refused:
            await ring.recognise(name, tried_digest)
        words.add(refused.value.detail)
    assert len(words) == 1
    with pytest.raises(NotFound):
        await ring.revoke(key.id)


@pytest.mark.parametrize(
    "fields", [{"requests_per_s": 0}, {"max_sessions": -1}, {"requests_per_s": float("nan")}]
)
async def test_quotas_are_positive(control: ControlPlane, fields: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        await Keyring(control.redis, control.kept).create("ann", READ, **fields)
    assert await Keyring(control.redis, control.kept).list() == []

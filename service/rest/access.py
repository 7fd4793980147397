"""What a key hands on: share links of one world, and tickets for browsers' WebSockets."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

from fastapi import APIRouter
from pydantic import Field

from service.auth.grants import Grant
from service.auth.principal import PrincipalDep, Scope, requires
from service.errors import Forbidden, NotSetUp
from service.gateway import GatewayDep
from service.rest.problems import RESPONSES
from service.schemas import Closed

router = APIRouter(tags=["access"], responses=RESPONSES)

MAX_SHARE_S = 90 * 86_400
NO_KEYS = (
    "This server needs no keys (MIRAGE_REQUIRE_KEYS=false), so it makes no share links or "
    "tickets: whoever reaches it may do everything."
)


class TicketOut(Closed):
    ticket: str = Field(description="for `?ticket=` of one WebSocket's URL, once")
    expires_at: datetime


class WebhookSecretOut(Closed):
    secret: str = Field(description="for any Standard Webhooks library; it is your owner's alone")


class ShareIn(Closed):
    may: Literal["look", "walk"] = Field("look", description="walk: also move the camera")
    lifetime_s: int = Field(86_400, ge=1, le=MAX_SHARE_S)


TO_LOOK = ShareIn.model_validate({})  # what a share without a body is


class ShareOut(Closed):
    id: str
    may: Literal["look", "walk"]
    expires_at: datetime


class NewShareOut(ShareOut):
    credential: str = Field(description="shown only now; use it like a key")


class ShareList(Closed):
    shares: list[ShareOut]


@router.post("/v1/sessions/{session_id}/tickets", status_code=201)
@requires(Scope.READ)
async def create_ticket(session_id: str, gateway: GatewayDep, principal: PrincipalDep) -> TicketOut:
    """Browsers can't send a key with a WebSocket; a ticket stands in its URL instead, works once
    and only within half a minute."""
    if principal.is_local:
        raise NotSetUp(NO_KEYS)
    grant, text = await gateway.guard.grants.ticket(principal, session_id)
    return TicketOut(ticket=text, expires_at=_moment(grant))


@router.get("/v1/webhook-secret")
@requires(Scope.WRITE)
async def get_webhook_secret(gateway: GatewayDep, principal: PrincipalDep) -> WebhookSecretOut:
    """What to check the signatures of your webhooks with."""
    if not gateway.settings.webhook_targets:
        raise NotSetUp("This server sends no webhooks: MIRAGE_WEBHOOK_TARGETS is empty.")
    return WebhookSecretOut(secret=gateway.webhooks.secret_of(principal.owner))


@router.post("/v1/sessions/{session_id}/shares", status_code=201)
@requires(Scope.WRITE)
async def create_share(
    session_id: str, gateway: GatewayDep, principal: PrincipalDep, share: ShareIn = TO_LOOK
) -> NewShareOut:
    """Let others see (or walk in) this one world for a while, without a key of their own. A world
    has 256 such links at most."""
    if principal.is_local:
        raise NotSetUp(NO_KEYS)
    scopes = {Scope.READ, Scope.WALK} if share.may == "walk" else {Scope.READ}
    if not scopes <= principal.scopes:
        raise Forbidden(f"A key without the scope `{Scope.WALK}` can't hand it on.")
    await gateway.control.sessions.get(session_id)
    grant, text = await gateway.guard.grants.share(
        principal, session_id, frozenset(scopes), share.lifetime_s
    )
    shown = _share_out(grant).model_dump()
    return NewShareOut(**shown, credential=text)


@router.get("/v1/sessions/{session_id}/shares")
@requires(Scope.WRITE)
async def list_shares(session_id: str, gateway: GatewayDep) -> ShareList:
    """The share links that are still good."""
    grants = await gateway.guard.grants.shares(session_id)
    return ShareList(shares=[_share_out(grant) for grant in grants])


@router.delete("/v1/sessions/{session_id}/shares/{share_id}", status_code=204)
@requires(Scope.WRITE)
async def revoke_share(session_id: str, share_id: str, gateway: GatewayDep) -> None:
    """End a share link now."""
    await gateway.guard.grants.revoke(session_id, share_id)


def _share_out(grant: Grant) -> ShareOut:
    may: Literal["look", "walk"] = "walk" if Scope.WALK in grant.scopes else "look"
    return ShareOut(id=grant.id, may=may, expires_at=_moment(grant))


def _moment(grant: Grant) -> datetime:
    return datetime.fromtimestamp(grant.expires_s, UTC)

"""Mail domains, and the event about them."""

from datetime import datetime
from typing import Literal, TypeAlias

import attrs

from .base import ServerEvent

__all__ = ["Domain", "DomainVerifiedEvent", "VerificationRecord"]


def _upper(status: str | None) -> str | None:
    # AgentMail documents upper case but also sends lower case. One spelling makes comparisons simple.
    return None if status is None else status.upper()


@attrs.frozen(kw_only=True)
class VerificationRecord:
    """A DNS record that a domain requires.

    Attributes:
        type: `"TXT"`, `"CNAME"` or `"MX"`.
        status: `"MISSING"`, `"INVALID"` or `"VALID"`; converted to upper case.
        priority: The priority of an MX record.
        reason: Why the record is invalid, when known: `"duplicate_records"` or `"value_mismatch"`.
    """

    type: str | None = None
    name: str | None = None
    value: str | None = None
    status: str | None = attrs.field(default=None, converter=_upper)
    priority: int | None = None
    reason: str | None = None


@attrs.frozen(kw_only=True)
class Domain:
    """One of your mail domains.

    Attributes:
        domain: The domain name.
        status: `"NOT_STARTED"`, `"PENDING"`, `"INVALID"`, `"FAILED"`, `"VERIFYING"` or `"VERIFIED"`; converted to
            upper case, since the wire has both spellings.
        reason: Why the domain is not (yet) verified, when known; for example `"dns_records_missing"`.
        inbound_enabled: Whether the domain receives mail. `None` for old domains, which receive mail.
        client_id: The id that you gave the domain when you created it.
    """

    pod_id: str | None = None
    domain_id: str | None = None
    domain: str | None = None
    status: str | None = attrs.field(default=None, converter=_upper)
    reason: str | None = None
    feedback_enabled: bool | None = None
    inbound_enabled: bool | None = None
    subdomains_enabled: bool | None = None
    tracking_enabled: bool | None = None
    records: tuple[VerificationRecord, ...] = ()
    client_id: str | None = None
    updated_at: datetime | None = None
    created_at: datetime | None = None


@attrs.frozen(kw_only=True)
class DomainVerifiedEvent(ServerEvent):
    """One of your domains was verified."""

    event_type: str = "domain.verified"
    domain: Domain


AnyDomainEvent: TypeAlias = DomainVerifiedEvent

DomainEventType: TypeAlias = Literal["domain.verified"]

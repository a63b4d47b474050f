"""The errors of the REST API, and of the handshake: what AgentMail answers to a request that it does not grant.

Source: AgentMail's error reference. Programs are to look at `code`; `name` is older and says less.
"""

from collections.abc import Collection
from typing import Any

import httpx
import orjson

__all__ = [
    "Refusal",
    "conflict",
    "forbidden",
    "invalid",
    "no_http",
    "no_such_call",
    "not_found",
    "ordered",
    "powerless",
    "refused_key",
    "too_large",
    "unprocessable",
]

NAMES = {
    400: "ValidationError",
    401: "UnauthorizedError",
    403: "ForbiddenError",
    404: "NotFoundError",
    409: "ConflictError",
    413: "PayloadTooLargeError",
    422: "UnprocessableError",
    429: "RateLimitError",
}

CODES = {
    400: "validation_error",
    401: "unknown_api_key",
    403: "forbidden",
    404: "not_found",
    409: "conflict",
    413: "payload_too_large",
    422: "unprocessable",
    429: "rate_limit_exceeded",
}
"""What is wrong, where a test wants an error and does not say which."""

DOCS = "https://docs.agentmail.to/errors#"


class Refusal(Exception):
    """A request is answered with an error.

    Args:
        code: What is wrong, for programs.
        more: Further fields of the answer.
    """

    def __init__(self, status: int, code: str, message: str, **more: Any) -> None:
        super().__init__(status, code, message)
        self.status = status
        self.answer = {"name": NAMES[status], "code": code, "message": message, "docs": DOCS + code} | more


def ordered(status: int) -> bytes:
    """The body of an error that a test wants; of what is none, there is none."""
    if status < 400:
        return b""
    server = status >= 500
    name = NAMES.get(status, "InternalServerError" if server else "Error")
    code = CODES.get(status, "internal_error" if server else "error")
    return orjson.dumps({"name": name, "code": code, "message": "ordered by a test", "docs": DOCS + code})


def invalid(field: str, expected: str) -> Refusal:
    """A parameter, or a field of the body, makes no sense."""
    message = f"{field} must be {expected}"
    return Refusal(400, "validation_error", message, errors=[{"path": [field], "message": message}])


def refused_key(key: str, api_keys: Collection[str] | None) -> Refusal | None:
    """The error, unless there is a key, and a known one.

    Args:
        key: `""`: there is none.
        api_keys: The keys that are known; `None`: any.
    """
    if not key:
        return Refusal(401, "missing_authorization", "an API key is required")
    if api_keys is not None and key not in api_keys:
        return Refusal(401, "unknown_api_key", "this API key is not known")
    return None


def forbidden(permission: str) -> Refusal:
    """The key lacks a permission, which only `fix` names, as it is at AgentMail."""
    return Refusal(
        403,
        "missing_permission",
        "Forbidden",
        fix=f"This API key does not have the '{permission}' permission. Give it to the key, or use another one.",
    )


def powerless() -> Refusal:
    """The key has no permission at all."""
    fix = "This API key may not do anything. Give it permissions, or use another one."
    return Refusal(403, "missing_permission", "Forbidden", fix=fix)


def no_http(what: Exception) -> Refusal:
    """What came is no request at all."""
    return Refusal(400, "validation_error", f"this is no HTTP request: {what}")


def no_such_call(request: httpx.Request) -> Refusal:
    """There is no such call here: it may be one that AgentMail has."""
    return Refusal(404, "not_found", f"FakeAgentMail has no {request.method} {request.url.path}")


def not_found() -> Refusal:
    """There is no such thing, or the key may not see it."""
    return Refusal(404, "not_found", "there is nothing here")


def conflict(message: str) -> Refusal:
    """The idempotency key was used for something else."""
    return Refusal(409, "conflict", message)


def too_large(message: str) -> Refusal:
    """The body of the request has more bytes than AgentMail takes."""
    return Refusal(413, "payload_too_large", message)


def unprocessable(message: str) -> Refusal:
    """The request is well-formed, but cannot be done."""
    return Refusal(422, "unprocessable", message)

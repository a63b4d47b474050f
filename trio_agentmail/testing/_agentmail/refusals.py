"""Refusals: AgentMail's error responses to requests of the REST API and to handshakes.

Source: AgentMail's error reference. Programs should use `code`. `name` is older and less specific.
"""

from typing import Any

import orjson

__all__ = [
    "Refusal",
    "conflict",
    "error_body",
    "forbidden",
    "invalid",
    "missing_key",
    "no_such_call",
    "not_found",
    "not_http",
    "powerless_key",
    "too_large",
    "unknown_key",
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
"""The code of an error for which a test gives only the status."""

DOCS = "https://docs.agentmail.to/errors#"


class Refusal(Exception):
    """An error response to a request.

    Args:
        status: The HTTP status.
        code: The error code, for programs.
        message: The description of the error, for people.
        more: Further fields of the body.

    Attributes:
        answer: The JSON object in the body.
    """

    def __init__(self, status: int, code: str, message: str, **more: Any) -> None:
        super().__init__(status, code, message)
        self.status = status
        self.answer = {"name": NAMES[status], "code": code, "message": message, "docs": DOCS + code} | more


def error_body(status: int) -> bytes:
    """Return the body of an error that a test requests, or `b""` if the status is below 400."""
    if status < 400:
        return b""
    server = status >= 500
    name = NAMES.get(status, "InternalServerError" if server else "Error")
    code = CODES.get(status, "internal_error" if server else "error")
    return orjson.dumps({"name": name, "code": code, "message": "requested by a test", "docs": DOCS + code})


def invalid(field: str, expected: str) -> Refusal:
    """Return the refusal of a query parameter or a body field with an invalid value."""
    message = f"{field} must be {expected}"
    return Refusal(400, "validation_error", message, errors=[{"path": [field], "message": message}])


def not_http(error: Exception) -> Refusal:
    """Return the refusal of bytes that are not an HTTP request."""
    return Refusal(400, "validation_error", f"this is not an HTTP request: {error}")


def missing_key() -> Refusal:
    """Return the refusal of a request without an API key."""
    return Refusal(401, "missing_authorization", "an API key is required")


def unknown_key() -> Refusal:
    """Return the refusal of an API key that AgentMail does not know."""
    return Refusal(401, "unknown_api_key", "this API key is not known")


def forbidden(permission: str) -> Refusal:
    """Return the refusal of a key that lacks a permission. Only `fix` names the permission, as at AgentMail."""
    return Refusal(
        403,
        "missing_permission",
        "Forbidden",
        fix=f"This API key does not have the '{permission}' permission. Give it to the key, or use another one.",
    )


def powerless_key() -> Refusal:
    """Return the refusal of a key without any permission."""
    fix = "This API key may not do anything. Give it permissions, or use another one."
    return Refusal(403, "missing_permission", "Forbidden", fix=fix)


def no_such_call(method: str, path: str) -> Refusal:
    """Return the refusal of a call that the fake does not have. AgentMail may have it."""
    return Refusal(404, "not_found", f"FakeAgentMail has no {method} {path}")


def not_found() -> Refusal:
    """Return the refusal for an object that does not exist, or that the key may not see."""
    return Refusal(404, "not_found", "not found")


def conflict(message: str) -> Refusal:
    """Return the refusal of an idempotency key that was used for another request."""
    return Refusal(409, "conflict", message)


def too_large(message: str) -> Refusal:
    """Return the refusal of a request whose body is larger than AgentMail accepts."""
    return Refusal(413, "payload_too_large", message)


def unprocessable(message: str) -> Refusal:
    """Return the refusal of a request that is well-formed but cannot be carried out."""
    return Refusal(422, "unprocessable", message)

"""What can go wrong in localhub.

::

    Exception
    ├── ApiError                answered at once, as an HTTP status and the service's error body
    │   └── RateLimitExceeded   429, whose body is another
    ├── RequestFailed           the whole batch request ends FAILED with this text
    └── StoreError              the object store refused or could not be reached
"""

from http import HTTPStatus
from typing import Any

_CODES = {
    401: "COMMON_UNAUTHORIZED",
    403: "COMMON_INSUFFICIENT_PERMISSIONS",
    404: "COMMON_NOT_FOUND",
    405: "COMMON_METHOD_NOT_ALLOWED",
    415: "COMMON_UNSUPPORTED_MEDIA_TYPE",
}


def code_of(status: int) -> str:
    """Return the service's code of a status about which nothing more is known."""
    return _CODES.get(status, "COMMON_EXCEPTION")


class ApiError(Exception):
    """An answer other than success, in the shape of the service's error body (`Boom` of the OpenAPI description)."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        errors: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.errors = errors
        self.headers = headers

    def body(self) -> dict[str, Any]:
        """Return the JSON body: `{"error": {status, reason, message, code, errors?}}`."""
        error: dict[str, Any] = {
            "status": self.status,
            "reason": HTTPStatus(self.status).phrase,
            "message": self.message,
            "code": self.code,
        }
        if self.errors:
            error["errors"] = self.errors
        return {"error": error}


class RateLimitExceeded(ApiError):
    """Too many requests. The description does not declare it; the documentation's example is the bare error object."""

    def __init__(self, message: str, retry_after_ms: int | None) -> None:
        headers = None if retry_after_ms is None else {"Retry-After": str(retry_after_ms)}
        super().__init__(429, message, "RATE_LIMIT_EXCEEDED", headers=headers)

    def body(self) -> dict[str, Any]:
        """Return the JSON body: `{status, reason, message, code}`."""
        error: dict[str, Any] = super().body()["error"]
        return error


def bad_payload(message: str, errors: dict[str, str] | None = None) -> ApiError:
    """Return the 400 for a payload that breaks a rule; `errors` names the fields."""
    return ApiError(400, message, "COMMON_BAD_PAYLOAD", errors)


class RequestFailed(Exception):
    """The batch request cannot be analysed or processed as a whole; the text becomes the task's `error`."""


class StoreError(Exception):
    """The object store refused a call or could not be reached; the text names the bucket, never a credential."""

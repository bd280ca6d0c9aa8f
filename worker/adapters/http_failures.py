"""
The ways in which a request by aiohttp fails, each with a code and words.

Owns the table that `core.taxonomy` gives meanings to. An answer that has begun well and does
not end in time is no slow provider but a wrong answer: its headers said 200.
"""

import aiohttp

OK = 200

FAILURES: tuple[tuple[type[BaseException], str, str], ...] = (
    (aiohttp.ConnectionTimeoutError, "connect_timeout", "no connection in time"),
    (TimeoutError, "timeout", "no answer in time"),
    (aiohttp.ClientConnectorCertificateError, "certificate", "its certificate is not trusted"),
    (aiohttp.ServerFingerprintMismatch, "certificate", "its certificate is not trusted"),
    (aiohttp.ClientSSLError, "tls", "no TLS connection"),
    (aiohttp.ClientConnectorError, "connect", "no connection"),
    (aiohttp.ClientConnectionError, "disconnected", "the connection was closed"),
    (aiohttp.ClientPayloadError, "truncated", "the answer broke off"),
    (aiohttp.ClientResponseError, "protocol", "the answer is no HTTP"),
    (aiohttp.RedirectClientError, "protocol", "the answer redirects"),
    (aiohttp.InvalidURL, "address", "embedding.url cannot be used"),
    (aiohttp.NonHttpUrlClientError, "address", "embedding.url cannot be used"),
    (aiohttp.ClientError, "client", "the request failed"),
    (OSError, "disconnected", "the connection broke"),
)
"""The ways in which aiohttp fails, the nearest class first: class, code, words."""


class TooLong(Exception):
    """The answer is longer than allowed."""


def failure_of(error: BaseException, status: int | None) -> tuple[str, str]:
    """Return code and words of a failure; `status` is None where no headers had come."""
    if isinstance(error, TimeoutError) and status == OK:
        return "endless", "the answer began and did not end in time"
    for error_class, code, words in FAILURES:
        if isinstance(error, error_class):
            return code, words
    return "too_long", "the answer is too long"

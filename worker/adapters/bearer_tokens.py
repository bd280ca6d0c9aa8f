"""
Bearer tokens for the embedding provider, from an OAuth2 token endpoint.

Owns the token in use. Asks for one with a client's secret (RFC 6749, 4.4) or with an assertion
signed by a service account's key (RFC 7523, 2.1), both read anew from where they are kept. A
token is replaced when 80 % of its life are over, and when the provider refuses it. Never logs
or shows a secret or a token, never follows a redirect, never sends a secret in the clear.

Invariants: at most one request for a token is under way; while the token in use is good, no
one but the one who replaces it waits for the endpoint, whatever the endpoint does.
"""

import asyncio
import base64
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from math import isfinite
from typing import NamedTuple
from urllib.parse import quote_plus

import aiohttp
import msgspec
from yarl import URL

from worker.adapters.embedding_key import EmbeddingKey, header_safe
from worker.config import EmbeddingOptions
from worker.errors import ConfigError, KeyRefused, ProviderUnavailable
from worker.ports import Clock, Offload

_log = logging.getLogger(__name__)

SHARE_OF_LIFE = 0.8
UNKNOWN_LIFE_SECONDS = 300.0  # RFC 6749, 5.1: `expires_in` may be left out
ASSERTION_SECONDS = 300  # RFC 7523, 3: short; Google takes an hour at most
REQUEST_SECONDS = 10.0
ANSWER_BYTES = 64 * 1024
JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_REFUSALS = frozenset(range(300, 500)) - {408, 425, 429}
_OK = 200


class _Token(NamedTuple):
    value: str
    replace_at: float
    expires_at: float


class _Answer(msgspec.Struct):
    access_token: str
    expires_in: float | str | None = None  # some servers write it as a string


class _Refusal(msgspec.Struct):
    error: str = ""


class _KeyFile(msgspec.Struct):
    """What we need of a JSON key file, with the names that Google gave it."""

    client_email: str
    private_key: str
    private_key_id: str | None = None
    token_uri: str | None = None


class _Request(NamedTuple):
    url: URL
    form: dict[str, str]
    headers: dict[str, str]


def _now_epoch_seconds() -> float:
    return datetime.now(UTC).timestamp()


class BearerTokens:
    """
    The source of tokens: `current` before a call, `renewed` after a 401.

    `secret` is where the client's secret or the JSON key file is kept.
    """

    def __init__(
        self,
        options: EmbeddingOptions,
        secret: EmbeddingKey,
        *,
        clock: Clock = time.monotonic,
        now: Callable[[], float] = _now_epoch_seconds,
        offload: Offload = asyncio.to_thread,
    ) -> None:
        """
        Check the address; nothing is asked for before the first call.

        Raises:
            ConfigError: the token endpoint's address would carry a secret in the clear.
        """
        self._options = options
        self._secret = secret
        self._clock = clock
        self._now = now
        self._offload = offload
        self._url = _endpoint(options.token_url) if options.token_url else None
        self._token: _Token | None = None
        self._one_at_a_time = asyncio.Lock()
        self._session: aiohttp.ClientSession | None = None
        self._failed: ProviderUnavailable | None = None
        self.failures = 0
        self.fetched = 0

    async def current(self) -> str:
        """
        Return a token that is good now.

        Raises:
            ProviderUnavailable: there is none, and none can be had.
        """
        token, now = self._token, self._clock()
        if token is None or now >= token.expires_at:
            return (await self._replaced()).value
        if now >= token.replace_at and not self._one_at_a_time.locked():
            return (await self._replaced_ahead(token)).value
        return token.value

    async def renewed(self, refused: str | None) -> str:
        """
        Return a token after the provider refused one; the same where there is no other.

        Raises:
            ProviderUnavailable: none can be had.
        """
        if self._token is not None and self._token.value != refused:
            return await self.current()
        return (await self._replaced()).value

    async def close(self) -> None:
        """Close the connection to the endpoint."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _replaced_ahead(self, token: _Token) -> _Token:
        try:
            return await self._replaced()
        except ProviderUnavailable as error:
            _log.warning("the token in use could not be replaced yet: %s", error)
            # Half of what is left of its life, and so on: ten tries in the last tenth.
            again = (self._clock() + token.expires_at) / 2
            self._token = token._replace(replace_at=again)
            return token

    async def _replaced(self) -> _Token:
        """Return the next token; who comes meanwhile shares the one answer or failure."""
        fetched, failures = self.fetched, self.failures
        async with self._one_at_a_time:
            if self._token is not None and self.fetched != fetched:
                return self._token
            if self._failed is not None and self.failures != failures:
                failed = self._failed
                raise type(failed)(str(failed), status=failed.status) from failed
            try:
                self._token = await self._fetch()
            except ProviderUnavailable as error:
                self._failed = error
                self.failures += 1
                raise
            self.fetched += 1
            return self._token

    async def _fetch(self) -> _Token:
        asked_at = self._clock()
        request = await self._request()
        try:
            async with asyncio.timeout(min(REQUEST_SECONDS, self._options.timeout_seconds)):
                status, content = await self._post(request)
        except (aiohttp.ClientError, OSError) as error:
            raise ProviderUnavailable(
                f"no token: {request.url.host} did not answer ({type(error).__name__})"
            ) from error
        return _read(status, content, asked_at)

    async def _post(self, request: _Request) -> tuple[int, bytes]:
        if self._session is None:
            self._session = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar())
        async with self._session.post(
            request.url, data=request.form, headers=request.headers, allow_redirects=False
        ) as response:
            content = b""
            async for piece in response.content.iter_any():
                content += piece
                if len(content) > ANSWER_BYTES:
                    break
            # No token is that long, and what is cut is no JSON.
            return response.status, content[:ANSWER_BYTES]

    async def _request(self) -> _Request:
        secret = self._secret.read()
        if secret is None:
            raise KeyRefused(
                f"embedding.auth {self._options.auth} needs what embedding.api_key_variable or "
                "embedding.api_key_file names, and nothing is there"
            )
        if self._options.auth == "service_account":
            return await self._by_assertion(secret)
        return self._by_secret(secret)

    def _by_secret(self, secret: str) -> _Request:
        assert self._url is not None
        assert self._options.client_id is not None
        form = {"grant_type": "client_credentials"}
        # RFC 6749, 2.3.1: both are form-encoded before they are joined.
        pair = f"{quote_plus(self._options.client_id)}:{quote_plus(secret)}"
        return self._asking(
            self._url, form, Authorization=f"Basic {base64.b64encode(pair.encode()).decode()}"
        )

    async def _by_assertion(self, secret: str) -> _Request:
        try:
            account = msgspec.json.decode(secret, type=_KeyFile)
            url = self._url or _endpoint(account.token_uri or "")
        except (msgspec.DecodeError, ConfigError):
            # From None: a message of msgspec's may quote what is in the file.
            raise KeyRefused(
                "embedding.api_key_variable or embedding.api_key_file names no JSON key file "
                "with client_email, private_key and an https token_uri"
            ) from None
        claims = self._claims(account, str(url))
        # Reading the key takes 45 ms, signing 1 ms.
        signed: str = await self._offload(lambda: _sign(account, claims))
        return self._asking(url, {"grant_type": JWT_BEARER, "assertion": signed})

    def _claims(self, account: _KeyFile, audience: str) -> dict[str, str | int]:
        now = int(self._now())
        claims: dict[str, str | int] = {
            "iss": account.client_email,
            "aud": audience,
            "iat": now,
            "exp": now + ASSERTION_SECONDS,
        }
        # RFC 7523 wants a subject; Google takes one only for another user's data.
        if self._options.client_id is not None:
            claims["sub"] = self._options.client_id
        if self._options.token_scope is not None:
            claims["scope"] = self._options.token_scope
        return claims

    def _asking(self, url: URL, form: dict[str, str], **headers: str) -> _Request:
        if self._options.token_scope is not None:
            form["scope"] = self._options.token_scope
        return _Request(url, form, {"Accept": "application/json", **headers})


def _sign(account: _KeyFile, claims: dict[str, str | int]) -> str:
    # Its import takes 0.2 s, which only who uses it should pay.
    from joserfc import jwt
    from joserfc.errors import JoseError
    from joserfc.jwk import RSAKey

    header = {"alg": "RS256", "typ": "JWT"}
    if account.private_key_id is not None:
        header["kid"] = account.private_key_id
    try:
        return jwt.encode(header, claims, RSAKey.import_key(account.private_key))
    except (JoseError, ValueError):
        raise KeyRefused(
            "the private_key of the service account's JSON key file is no RSA key"
        ) from None


def _read(status: int, content: bytes, asked_at: float) -> _Token:
    if status != _OK:
        raise _refused(status, content)
    try:
        answer = msgspec.json.decode(content, type=_Answer)
        life = UNKNOWN_LIFE_SECONDS if answer.expires_in is None else float(answer.expires_in)
        life = life if isfinite(life) else UNKNOWN_LIFE_SECONDS
    except (msgspec.DecodeError, ValueError):
        raise ProviderUnavailable(
            "no token: the token endpoint's answer holds none", status=status
        ) from None
    value = header_safe(answer.access_token, "the token endpoint's answer")
    return _Token(value, asked_at + SHARE_OF_LIFE * life, asked_at + life)


def _refused(status: int, content: bytes) -> ProviderUnavailable:
    """Return what a refusal means; RFC 6749, 5.2 names the codes."""
    try:
        code = msgspec.json.decode(content, type=_Refusal).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        code = ""
    named = f" ({code})" if code.isidentifier() and len(code) <= 40 else ""  # noqa: PLR2004  no prose
    said = f"no token: the token endpoint answered {status}{named}"
    if status in _REFUSALS:
        return KeyRefused(
            f"{said}: check embedding.token_url, embedding.client_id and the secret",
            status=status,
        )
    return ProviderUnavailable(said, status=status)


def _endpoint(address: str) -> URL:
    """Return the address of a token endpoint; RFC 6749, 3.2: it must use TLS."""
    try:
        url = URL(address)
    except ValueError as error:
        raise ConfigError("embedding.token_url is no URL") from error
    is_safe = url.scheme == "https" or (url.scheme == "http" and url.host in _LOOPBACK)
    if not is_safe or not url.host or url.user is not None or url.password is not None:
        raise ConfigError(
            "embedding.token_url must begin with https:// (http:// on loopback) and hold no "
            "credentials: a secret is sent there"
        )
    return url

"""Tokens: one request for them at a time, early enough that nobody ever waits for one."""

import asyncio
import base64
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from joserfc import jwt
from joserfc.jwk import RSAKey

from tests.support import provider as scripted
from tests.support.embedders import options_for
from tests.support.provider import Provider, vector_of
from worker.adapters.bearer_tokens import BearerTokens
from worker.adapters.embedding_key import EmbeddingKey
from worker.adapters.http_embedder import HttpEmbedder
from worker.config import EmbeddingOptions
from worker.errors import ConfigError, KeyRefused, ProviderUnavailable
from worker.ports import EmbeddingRequest

SECRET = "s3cret: with/odd+characters"
SIZE = 4
NOW = 1_800_000_000


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class TokenEndpoint:
    """
    An OAuth2 token endpoint: a new token for every request, good for `life` seconds.

    `next` are the answers to the next requests; with a `gate` they wait until it is open.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.life: object = 1.0
        self.next: list[Callable[[], web.Response]] = []
        self.gate: asyncio.Event | None = None
        self.forms: list[dict[str, str]] = []
        self.headers: list[dict[str, str]] = []
        self.good_until: dict[str, float] = {}
        self.in_flight = 0
        self.most_in_flight = 0
        self.arrived = asyncio.Event()
        self._runner: web.AppRunner | None = None
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/token"

    @property
    def requests(self) -> int:
        return len(self.forms)

    def accepts(self, authorization: str) -> bool:
        """Whether the provider takes this token now."""
        token = authorization.removeprefix("Bearer ")
        return self.clock() < self.good_until.get(token, 0)

    def revoke(self) -> None:
        self.good_until.clear()

    async def start(self) -> None:
        app = web.Application()
        app.router.add_post("/token", self._serve)
        app.router.add_post("/elsewhere", self._serve)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()
        self._port = self._runner.addresses[0][1]

    async def close(self) -> None:
        await self._runner.cleanup()

    async def _serve(self, request: web.Request) -> web.Response:
        self.forms.append({name: str(value) for name, value in (await request.post()).items()})
        self.headers.append(dict(request.headers))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        self.arrived.set()
        try:
            if self.gate is not None:
                await self.gate.wait()
            return self.next.pop(0)() if self.next else self._issue()
        finally:
            self.in_flight -= 1

    def _issue(self) -> web.Response:
        token = f"token-{self.requests}"
        self.good_until[token] = self.clock() + float(self.life or 1)
        answer: dict[str, Any] = {"access_token": token, "token_type": "Bearer"}
        if self.life is not None:
            answer["expires_in"] = self.life
        return web.json_response(answer)


def answer(status: int, content: str, **headers: str) -> Callable[[], web.Response]:
    return lambda: web.Response(status=status, text=content, headers=headers)


def request(*texts: str) -> EmbeddingRequest:
    return EmbeddingRequest("model", SIZE, texts or ("one",))


def expected(*texts: str) -> list[bytes]:
    return [vector_of(text, "model", SIZE).tobytes() for text in texts]


async def all_of(calls: Iterable[Any]) -> list[Any]:
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        made = [tasks.create_task(call) for call in calls]
    return [one.result() for one in made]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def endpoint(clock: Clock) -> AsyncIterator[TokenEndpoint]:
    endpoint = TokenEndpoint(clock)
    await endpoint.start()
    yield endpoint
    await endpoint.close()


@pytest.fixture
async def provider(endpoint: TokenEndpoint) -> AsyncIterator[Provider]:
    """Takes the tokens of the endpoint while they are good."""
    async with Provider(SIZE) as provider:
        provider.script = lambda call: (
            None
            if endpoint.accepts(call.headers.get("Authorization", ""))
            else scripted.status(401, code="invalid_token")
        )
        yield provider


def options_with(endpoint: TokenEndpoint, **changes: object) -> EmbeddingOptions:
    client = {"auth": "client_credentials", "client_id": "fleet", "token_url": endpoint.url}
    return options_for(
        str(changes.pop("url", "http://127.0.0.1:1/v1")),
        **({"api_key_variable": "SECRET"} | client | changes),
    )


def source(options: EmbeddingOptions, secret: str, clock: Clock) -> BearerTokens:
    key = EmbeddingKey(options, {"SECRET": secret}, check=lambda value, _: value.strip())
    return BearerTokens(options, key, clock=clock, now=lambda: NOW)


@pytest.fixture
async def tokens(endpoint: TokenEndpoint, clock: Clock) -> AsyncIterator[BearerTokens]:
    tokens = source(options_with(endpoint, token_scope="embed"), SECRET, clock)
    yield tokens
    await tokens.close()


@pytest.fixture
async def embedder(
    endpoint: TokenEndpoint, provider: Provider, clock: Clock
) -> AsyncIterator[HttpEmbedder]:
    options = options_with(endpoint, url=provider.url)
    embedder = HttpEmbedder(options, environ={"SECRET": SECRET}, clock=clock)
    yield embedder
    await embedder.close()


class TestClientCredentials:
    async def test_a_token_is_asked_for_as_the_rfc_says(
        self, endpoint: TokenEndpoint, tokens: BearerTokens
    ) -> None:
        assert await tokens.current() == "token-1"
        assert endpoint.forms == [{"grant_type": "client_credentials", "scope": "embed"}]
        scheme, pair = endpoint.headers[0]["Authorization"].split()
        assert scheme == "Basic"
        assert base64.b64decode(pair) == b"fleet:s3cret%3A+with%2Fodd%2Bcharacters"

    async def test_a_token_is_used_for_four_fifths_of_its_life(
        self, endpoint: TokenEndpoint, tokens: BearerTokens, clock: Clock
    ) -> None:
        endpoint.life = 100
        assert await tokens.current() == "token-1"
        clock.now += 79.9
        assert await tokens.current() == "token-1"
        assert endpoint.requests == 1
        clock.now += 0.1
        assert await tokens.current() == "token-2"
        assert endpoint.requests == 2

    @pytest.mark.parametrize(
        ("life", "seconds"), [("50", 40), (None, 240), ("nan", 240), ("inf", 240)]
    )
    async def test_a_life_that_is_odd_or_missing_is_bounded(
        self,
        endpoint: TokenEndpoint,
        tokens: BearerTokens,
        clock: Clock,
        life: object,
        seconds: float,
    ) -> None:
        endpoint.life = life
        await tokens.current()
        clock.now += seconds - 0.01
        await tokens.current()
        assert endpoint.requests == 1
        clock.now += 0.02
        await tokens.current()
        assert endpoint.requests == 2

    @pytest.mark.parametrize("life", [0, -1])
    async def test_a_token_without_a_life_is_used_once(
        self, endpoint: TokenEndpoint, tokens: BearerTokens, life: int
    ) -> None:
        endpoint.life = life
        assert [await tokens.current() for _ in range(3)] == ["token-1", "token-2", "token-3"]

    async def test_the_secret_is_read_again_for_the_next_token(
        self, endpoint: TokenEndpoint, clock: Clock, tmp_path: Path
    ) -> None:
        file = tmp_path / "secret"
        file.write_text("first\n")
        tokens = source(options_with(endpoint, api_key_file=file), "unused", clock)
        await tokens.current()
        file.write_text("the second\n")
        clock.now += 10
        await tokens.current()
        sent = [one["Authorization"].split()[1] for one in endpoint.headers]
        assert [base64.b64decode(one) for one in sent] == [b"fleet:first", b"fleet:the+second"]
        await tokens.close()

    async def test_without_a_secret_nothing_is_asked(
        self, endpoint: TokenEndpoint, clock: Clock
    ) -> None:
        tokens = source(options_with(endpoint), "", clock)
        with pytest.raises(KeyRefused, match=r"embedding\.api_key_variable"):
            await tokens.current()
        assert endpoint.requests == 0

    @pytest.mark.parametrize(
        "address",
        [
            "http://tokens.example/token",
            "http://169.254.169.254/token",
            "https://u:p@tokens.example/token",
            "file:///etc/passwd",
            "tokens.example",
            "http://h:x/token",
        ],
    )
    def test_a_secret_is_never_sent_in_the_clear(
        self, endpoint: TokenEndpoint, address: str
    ) -> None:
        with pytest.raises(ConfigError, match=r"embedding\.token_url"):
            HttpEmbedder(options_with(endpoint, token_url=address))

    @pytest.mark.parametrize("missing", ["token_url", "client_id"])
    def test_what_is_needed_is_asked_for_at_start(
        self, endpoint: TokenEndpoint, missing: str
    ) -> None:
        with pytest.raises(ConfigError, match=rf"embedding\.{missing}"):
            options_with(endpoint, **{missing: None})


@cache
def rsa_key() -> RSAKey:
    return RSAKey.generate_key(2048)


class TestServiceAccount:
    def file(self, **changes: object) -> str:
        fields = {
            "type": "service_account",
            "client_email": "fleet@project.example",
            "private_key_id": "key-1",
            "private_key": rsa_key().as_pem(private=True).decode(),
            "token_uri": "https://unused.example/token",
        }
        return json.dumps(fields | changes)

    def source(
        self, endpoint: TokenEndpoint, clock: Clock, content: str, **changes: object
    ) -> BearerTokens:
        changes = {"auth": "service_account", "client_id": None, **changes}
        return source(options_with(endpoint, **changes), content, clock)

    async def test_an_assertion_is_signed_and_exchanged(
        self, endpoint: TokenEndpoint, clock: Clock
    ) -> None:
        tokens = self.source(endpoint, clock, self.file(), token_scope="embed")
        assert await tokens.current() == "token-1"
        (form,) = endpoint.forms
        assert form["grant_type"] == "urn:ietf:params:oauth:grant-type:jwt-bearer"
        assertion = jwt.decode(form["assertion"], rsa_key(), algorithms=["RS256"])
        assert assertion.header == {"alg": "RS256", "typ": "JWT", "kid": "key-1"}
        assert assertion.claims == {
            "iss": "fleet@project.example",
            "aud": endpoint.url,
            "iat": NOW,
            "exp": NOW + 300,
            "scope": "embed",
        }
        assert "Authorization" not in endpoint.headers[0]
        await tokens.close()

    async def test_a_subject_is_named_where_one_is_wanted(
        self, endpoint: TokenEndpoint, clock: Clock
    ) -> None:
        tokens = self.source(endpoint, clock, self.file(), client_id="subject")
        await tokens.current()
        claims = jwt.decode(endpoint.forms[0]["assertion"], rsa_key()).claims
        assert claims["sub"] == "subject"
        assert "scope" not in claims
        await tokens.close()

    async def test_the_endpoint_of_the_key_file_is_used_where_none_is_set(
        self, endpoint: TokenEndpoint, clock: Clock
    ) -> None:
        content = self.file(token_uri=endpoint.url)
        tokens = self.source(endpoint, clock, content, token_url=None)
        assert await tokens.current() == "token-1"
        await tokens.close()

    @pytest.mark.parametrize(
        "changes",
        [
            {"token_uri": "http://tokens.example/"},
            {"token_uri": None},
            {"client_email": None},
            {"private_key": 5},
        ],
    )
    async def test_a_key_file_that_lacks_something_is_refused(
        self, endpoint: TokenEndpoint, clock: Clock, changes: dict[str, object]
    ) -> None:
        tokens = self.source(endpoint, clock, self.file(**changes), token_url=None)
        with pytest.raises(KeyRefused, match="no JSON key file"):
            await tokens.current()
        assert endpoint.requests == 0

    @pytest.mark.parametrize("content", ["no JSON", "[]", '{"private_key": "canary"}'])
    async def test_what_is_no_key_file_is_not_quoted(
        self, endpoint: TokenEndpoint, clock: Clock, content: str
    ) -> None:
        tokens = self.source(endpoint, clock, content)
        with pytest.raises(KeyRefused) as caught:
            await tokens.current()
        assert "canary" not in repr(caught.value)

    @pytest.mark.parametrize("key", ["canary", "-----BEGIN PRIVATE KEY-----\nAA\n"])
    async def test_a_private_key_that_is_none_is_not_quoted(
        self, endpoint: TokenEndpoint, clock: Clock, key: str
    ) -> None:
        tokens = self.source(endpoint, clock, self.file(private_key=key))
        with pytest.raises(KeyRefused, match="private_key") as caught:
            await tokens.current()
        assert key not in repr(caught.value)
        assert caught.value.__suppress_context__


class TestOneAtATime:
    async def test_who_needs_the_first_token_shares_one_request(
        self, endpoint: TokenEndpoint, tokens: BearerTokens
    ) -> None:
        assert await all_of(tokens.current() for _ in range(50)) == ["token-1"] * 50
        assert endpoint.requests == 1

    async def test_who_fails_to_get_it_shares_one_failure(
        self, endpoint: TokenEndpoint, tokens: BearerTokens
    ) -> None:
        async def failed() -> bool:
            with pytest.raises(ProviderUnavailable):
                await tokens.current()
            return True

        endpoint.next.append(answer(503, ""))
        assert all(await all_of(failed() for _ in range(50)))
        assert endpoint.requests == 1
        assert await tokens.current() == "token-2"

    async def test_while_a_token_is_replaced_the_others_go_on_with_it(
        self, endpoint: TokenEndpoint, tokens: BearerTokens, clock: Clock
    ) -> None:
        await tokens.current()
        clock.now += 0.9
        endpoint.gate = asyncio.Event()
        endpoint.arrived.clear()
        async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
            replacing = tasks.create_task(tokens.current())
            await endpoint.arrived.wait()
            for _ in range(20):
                assert await tokens.current() == "token-1"
            endpoint.gate.set()
        assert replacing.result() == "token-2"
        assert endpoint.requests == 2

    async def test_a_token_is_got_though_the_first_who_asked_has_left(
        self, endpoint: TokenEndpoint, tokens: BearerTokens
    ) -> None:
        endpoint.gate = asyncio.Event()
        async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
            leaving = tasks.create_task(tokens.current())
            await endpoint.arrived.wait()
            staying = tasks.create_task(tokens.current())
            leaving.cancel()
            endpoint.gate.set()
        assert staying.result().startswith("token-")


class TestFailingEndpoint:
    async def test_an_endpoint_that_is_away_is_nobodys_fault(
        self, endpoint: TokenEndpoint, tokens: BearerTokens
    ) -> None:
        await endpoint.close()
        with pytest.raises(ProviderUnavailable, match="did not answer") as caught:
            await tokens.current()
        assert type(caught.value) is ProviderUnavailable
        await endpoint.start()
        assert await tokens.current() == "token-1"

    async def test_no_answer_in_time_is_nobodys_fault(
        self, endpoint: TokenEndpoint, clock: Clock
    ) -> None:
        tokens = source(options_with(endpoint, timeout_seconds=0.05), SECRET, clock)
        endpoint.gate = asyncio.Event()
        with pytest.raises(ProviderUnavailable, match="did not answer"):
            await tokens.current()
        endpoint.gate.set()
        await tokens.close()

    @pytest.mark.parametrize(
        ("reply", "error"),
        [
            (answer(500, ""), ProviderUnavailable),
            (answer(503, "busy"), ProviderUnavailable),
            (answer(429, ""), ProviderUnavailable),
            (answer(200, "<html>log in</html>"), ProviderUnavailable),
            (answer(200, "{}"), ProviderUnavailable),
            (answer(200, '{"access_token": 5}'), ProviderUnavailable),
            (answer(200, '{"access_token": "t", "expires_in": "soon"}'), ProviderUnavailable),
            (answer(200, f'{{"access_token": "{"t" * 100_000}"}}'), ProviderUnavailable),
            (answer(200, '{"access_token": "two\\nlines"}'), KeyRefused),
            (answer(400, '{"error": "invalid_client"}'), KeyRefused),
            (answer(401, '{"error": {"no": "string"}}'), KeyRefused),
            (answer(404, ""), KeyRefused),
            (answer(307, "", Location="/elsewhere"), KeyRefused),
        ],
    )
    async def test_what_the_endpoint_refuses_says_what_to_check(
        self,
        endpoint: TokenEndpoint,
        tokens: BearerTokens,
        reply: Callable[[], web.Response],
        error: type[Exception],
    ) -> None:
        endpoint.next.append(reply)
        with pytest.raises(error) as caught:
            await tokens.current()
        assert type(caught.value) is error
        assert endpoint.requests == 1
        assert await tokens.current() == "token-2"

    async def test_the_code_of_a_refusal_is_told_and_its_prose_is_not(
        self, endpoint: TokenEndpoint, tokens: BearerTokens
    ) -> None:
        prose = {"error": "invalid_client", "error_description": f"{SECRET} is wrong"}
        endpoint.next += [
            answer(401, json.dumps(prose)),
            answer(401, json.dumps({"error": f"{SECRET} is wrong"})),
        ]
        with pytest.raises(KeyRefused, match=r"401 \(invalid_client\)") as first:
            await tokens.current()
        with pytest.raises(KeyRefused) as second:
            await tokens.current()
        assert SECRET not in repr(first.value) + repr(second.value)

    async def test_a_good_token_is_used_while_the_endpoint_is_away(
        self,
        endpoint: TokenEndpoint,
        tokens: BearerTokens,
        clock: Clock,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        endpoint.life = 100
        await tokens.current()
        endpoint.next = [answer(503, "")] * 100
        with caplog.at_level(logging.WARNING):
            while clock.now < 1100:
                assert await tokens.current() == "token-1"
                clock.now += 0.05
        assert 5 <= endpoint.requests <= 12
        assert "503" in caplog.text
        assert SECRET not in caplog.text
        assert "token-1" not in caplog.text
        with pytest.raises(ProviderUnavailable):
            await tokens.current()
        endpoint.next.clear()
        assert (await tokens.current()).startswith("token-")


class TestEmbedding:
    async def test_a_token_is_sent_as_bearer_whatever_the_dialect(
        self, endpoint: TokenEndpoint, provider: Provider, clock: Clock
    ) -> None:
        options = options_with(endpoint, url=provider.url, dialect="azure")
        embedder = HttpEmbedder(options, environ={"SECRET": SECRET}, clock=clock)
        assert await embedder.embed(request()) == expected("one")
        assert provider.last_headers["Authorization"] == "Bearer token-1"
        assert "api-key" not in provider.last_headers
        await embedder.close()

    async def test_a_refused_token_is_replaced_and_the_call_repeated_once(
        self, endpoint: TokenEndpoint, provider: Provider, embedder: HttpEmbedder
    ) -> None:
        await embedder.embed(request())
        endpoint.revoke()
        assert await embedder.embed(request("two")) == expected("two")
        assert endpoint.requests == 2
        assert provider.requests == 3
        assert not embedder.errors

    async def test_a_token_that_is_refused_again_is_a_matter_of_configuration(
        self, endpoint: TokenEndpoint, provider: Provider, embedder: HttpEmbedder
    ) -> None:
        provider.script = lambda _: scripted.status(401)
        with pytest.raises(KeyRefused) as caught:
            await embedder.embed(request())
        assert caught.value.status == 401
        assert endpoint.requests == provider.requests == 2
        assert embedder.errors == {"401": 1}

    async def test_the_same_token_is_not_sent_twice(
        self, endpoint: TokenEndpoint, provider: Provider, embedder: HttpEmbedder
    ) -> None:
        """Some endpoints hand out the token they have until it expires."""
        same = answer(200, '{"access_token": "t", "expires_in": 60}')
        endpoint.next = [same, same]
        with pytest.raises(KeyRefused):
            await embedder.embed(request())
        assert provider.requests == 1

    async def test_no_token_is_an_outage_and_never_a_refused_text(
        self, endpoint: TokenEndpoint, provider: Provider, embedder: HttpEmbedder
    ) -> None:
        endpoint.next = [answer(500, "")]
        with pytest.raises(ProviderUnavailable):
            await embedder.embed(request())
        assert provider.requests == 0
        assert await embedder.embed(request()) == expected("one")

    async def test_tokens_that_all_end_at_once_cost_one_request(
        self, endpoint: TokenEndpoint, embedder: HttpEmbedder
    ) -> None:
        await embedder.embed(request())
        endpoint.revoke()
        texts = [f"text {number}" for number in range(40)]
        found = await all_of(embedder.embed(request(text)) for text in texts)
        assert found == [expected(text) for text in texts]
        assert endpoint.requests == 2

    async def test_an_endpoint_that_rotates_every_second_loses_no_call_under_load(
        self, endpoint: TokenEndpoint, provider: Provider, embedder: HttpEmbedder, clock: Clock
    ) -> None:
        """Five seconds of 20 callers; every third second all tokens are revoked besides."""
        end, revoked = clock.now + 5, {int(clock.now)}
        done = 0

        async def caller(number: int) -> None:
            nonlocal done
            while clock.now < end:
                assert await embedder.embed(request(f"{number}")) == expected(f"{number}")
                done += 1
                clock.now += 0.004
                if int(clock.now) % 3 == 0 and int(clock.now) not in revoked:
                    revoked.add(int(clock.now))
                    endpoint.revoke()

        await all_of(caller(number) for number in range(20))
        assert done >= 1250
        assert not embedder.errors
        assert endpoint.most_in_flight == 1
        assert 5 <= endpoint.requests <= 12
        assert provider.statuses[401] >= 1


class TestStaticKey:
    async def test_a_key_that_was_replaced_unseen_is_read_again_when_it_is_refused(
        self, tmp_path: Path
    ) -> None:
        """A file system with coarse times shows no change."""
        import os

        file = tmp_path / "key"
        file.write_text("first")
        async with Provider(SIZE, key="first") as provider:
            options = options_for(provider.url, api_key_file=file)
            embedder = HttpEmbedder(options, environ={})
            await embedder.embed(request())
            before = file.stat()
            with file.open("r+") as same:
                same.write("other")
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
            provider.key = "other"
            assert await embedder.embed(request()) == expected("one")
            assert provider.requests == 3
            await embedder.close()

    async def test_a_key_that_is_still_the_same_is_not_sent_again(self) -> None:
        async with Provider(SIZE, key="right") as provider:
            options = options_for(provider.url, api_key_variable="KEY")
            embedder = HttpEmbedder(options, environ={"KEY": "wrong"})
            with pytest.raises(KeyRefused):
                await embedder.embed(request())
            assert provider.requests == 1
            await embedder.close()

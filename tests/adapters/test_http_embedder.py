"""What is special to the HTTP embedder: wrong answers, errors, limits, connections, the key."""

import asyncio
import base64
import json
import os
import socket
import ssl
import struct
import zlib
from collections.abc import AsyncIterator, Callable

import aiohttp
import pytest

from schemas.dead_letter import Facts
from tests.support import provider as scripted
from tests.support.embedders import options_for
from tests.support.provider import Provider, vector_of
from worker.adapters import http_failures
from worker.adapters.http_embedder import HttpEmbedder
from worker.embedded.kafka_settings import Certificates
from worker.errors import (
    BadOutput,
    ConfigError,
    Forbidden,
    KeyRefused,
    ProviderMisconfigured,
    ProviderUnavailable,
    QuotaExhausted,
    RateLimited,
    RejectedInput,
    WorkerError,
)
from worker.ports import EmbeddingRequest

SIZE = 4
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
CANARY = "a canary text that must not be repeated"

Make = Callable[..., HttpEmbedder]


def request(*texts: str, **changes: object) -> EmbeddingRequest:
    return EmbeddingRequest("model", SIZE, texts or ("one", "two", "three"))._replace(**changes)


def expected(*texts: str) -> list[bytes]:
    return [vector_of(text, "model", SIZE).tobytes() for text in texts]


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    async with Provider(SIZE) as provider:
        yield provider


@pytest.fixture
async def make(provider: Provider) -> AsyncIterator[Make]:
    made: list[HttpEmbedder] = []

    def make(environ: dict[str, str] | None = None, **changes: object) -> HttpEmbedder:
        url = changes.pop("url", provider.url)
        told = {name: changes.pop(name, None) for name in ("observe", "listen")}
        options = options_for(url, **changes)
        made.append(HttpEmbedder(options, environ=environ or {}, **told))
        return made[-1]

    yield make
    for embedder in made:
        await embedder.close()


class TestAnswers:
    async def test_an_answer_in_any_order_is_put_in_order(
        self, provider: Provider, make: Make
    ) -> None:
        provider.next(scripted.changed(lambda items: [items[2], items[0], items[1]]))
        assert await make().embed(request()) == expected("one", "two", "three")

    async def test_floats_are_accepted_where_base64_was_asked_for(
        self, provider: Provider, make: Make
    ) -> None:
        provider.next(scripted.floats_only())
        assert await make().embed(request()) == expected("one", "two", "three")
        assert provider.last_body["encoding_format"] == "base64"

    async def test_large_answers_of_floats_are_decoded_off_the_loop(
        self, provider: Provider, make: Make
    ) -> None:
        offloaded = []

        async def offload(work: Callable[[], object]) -> object:
            offloaded.append(work)
            return work()

        texts = [f"text {number}" for number in range(64)]
        provider.dimensions = 512
        provider.next(scripted.ok(), scripted.floats_only())
        embedder = HttpEmbedder(options_for(provider.url), offload=offload)
        in_base64 = await embedder.embed(request(*texts, dimensions=512))
        assert not offloaded
        assert await embedder.embed(request(*texts, dimensions=512)) == in_base64
        assert len(offloaded) == 1
        await embedder.close()

    @pytest.mark.parametrize(
        ("reply", "says"),
        [
            (scripted.changed(lambda items: items[:-1]), "2 vectors for 3 texts"),
            (scripted.changed(lambda items: [*items, items[0]]), "4 vectors for 3 texts"),
            (scripted.changed(lambda items: [items[0], *items[:-1]]), "index 0"),
            (
                scripted.changed(lambda items: [*items[:-1], {**items[2], "index": 3}]),
                "index 3",
            ),
            (
                scripted.changed(lambda items: [*items[:-1], {**items[2], "index": -1}]),
                "index -1",
            ),
            (
                scripted.changed(
                    lambda items: [{"embedding": item["embedding"]} for item in items]
                ),
                "cannot be read",
            ),
            (scripted.vector(1.0, 2.0, 3.0), "3 dimensions where the collection has 4"),
            (
                scripted.vector(1.0, 2.0, 3.0, 4.0, 5.0),
                "5 dimensions where the collection has 4",
            ),
            (scripted.embedding(base64.b64encode(b"12345").decode()), "1.25 dimensions"),
            (scripted.embedding([]), "0 dimensions"),
            (scripted.embedding([1.0, 2.0, 3.0]), "3 dimensions"),
            (scripted.vector(1.0, float("nan"), 0.0, 0.0), "not finite"),
            (scripted.vector(1.0, float("inf"), 0.0, 0.0), "not finite"),
            (scripted.vector(1.0, float("-inf"), 0.0, 0.0), "not finite"),
            (scripted.embedding([1e300, 0.0, 0.0, 0.0]), "not finite"),
            (scripted.embedding([float("nan")] * 4), "cannot be read"),
            (scripted.vector(0.0, 0.0, 0.0, 0.0), "zero"),
            (scripted.embedding([0, 0, 0, 0]), "zero"),
            (scripted.embedding("no base64!"), "cannot be read"),
            (scripted.embedding("AAA"), "cannot be read"),
            (scripted.embedding(None), "cannot be read"),
            (scripted.embedding(["1.0", 0, 0, 0]), "cannot be read"),
            (scripted.body(b""), "cannot be read"),
            (scripted.body(b"<html>busy</html>", "text/html"), "cannot be read"),
            (scripted.body(b"null"), "cannot be read"),
            (scripted.body(b'{"data": {}}'), "cannot be read"),
            (scripted.body(b'{"error": {"message": "later"}}'), "cannot be read"),
            (scripted.body(b'{"data": [{"index": 0, "embedding": "\xff"}]}'), "cannot be read"),
            (scripted.body(b"[" * 100_000), "cannot be read"),
        ],
    )
    async def test_a_wrong_answer_is_never_used(
        self, provider: Provider, make: Make, reply: scripted.Reply, says: str
    ) -> None:
        embedder = make()
        provider.next(reply)
        with pytest.raises(BadOutput, match=says) as caught:
            await embedder.embed(request())
        assert caught.value.status == 200
        assert embedder.errors == {"wrong_answer": 1}
        assert embedder.inputs == 0
        assert await embedder.embed(request("one")) == expected("one")

    @pytest.mark.parametrize(
        ("usage", "tokens"),
        [
            (b'{"total_tokens": 7, "prompt_tokens": 6}', 7),
            (b'{"prompt_tokens": 6}', 6),
            (b"null", 0),
            (b"{}", 0),
            (b'{"total_tokens": -1}', 0),
        ],
    )
    async def test_tokens_are_counted_where_the_provider_tells_them(
        self, provider: Provider, make: Make, usage: bytes, tokens: int
    ) -> None:
        embedder = make()
        item = b'{"index": 0, "embedding": [1, 0, 0, 0]}'
        provider.next(scripted.body(b'{"data": [' + item + b'], "usage": ' + usage + b"}"))
        assert await embedder.embed(request("one")) == [struct.pack("<4f", 1, 0, 0, 0)]
        assert embedder.tokens == tokens
        assert embedder.inputs == embedder.requests == 1

    async def test_a_server_that_knows_no_encoding_format_is_asked_without_it(
        self, provider: Provider, make: Make
    ) -> None:
        embedder = make()
        provider.script = lambda _: scripted.refuses_encoding_format()
        assert await embedder.embed(request("one")) == expected("one")
        assert provider.requests == 2
        assert await embedder.embed(request("two")) == expected("two")
        assert provider.requests == 3

    async def test_a_complaint_that_only_quotes_encoding_format_is_not_remembered(
        self, provider: Provider, make: Make
    ) -> None:
        embedder = make()
        refusal = scripted.status(400, "the text about encoding_format is refused")
        provider.next(refusal, refusal)
        with pytest.raises(RejectedInput):
            await embedder.embed(request("one"))
        await embedder.embed(request("two"))
        assert provider.last_body["encoding_format"] == "base64"


class TestHeaders:
    async def test_the_headers_of_every_answer_are_told(
        self, provider: Provider, make: Make
    ) -> None:
        heard: list[str] = []
        provider.next(
            *(scripted.status(status, headers={"x-n": f"{status}"}) for status in (500, 429)),
            scripted.truncated(),
        )
        embedder = make(listen=lambda headers: heard.append(headers.get("X-N", "none")))
        for _ in range(3):
            with pytest.raises(ProviderUnavailable):
                await embedder.embed(request())
        provider.headers = {"x-n": "200"}
        await embedder.embed(request())
        assert heard == ["500", "429", "none", "200"]


class TestRequests:
    async def test_the_body_is_what_the_api_documents(
        self, provider: Provider, make: Make
    ) -> None:
        await make().embed(request("one", "two"))
        assert provider.last_body == {
            "model": "model",
            "input": ["one", "two"],
            "encoding_format": "base64",
        }
        assert provider.last_headers["Accept-Encoding"] == "identity"
        assert provider.last_headers["Content-Type"] == "application/json"
        assert "Authorization" not in provider.last_headers
        assert "traceparent" not in provider.last_headers

    async def test_dimensions_are_sent_on_request_only(
        self, provider: Provider, make: Make
    ) -> None:
        vectors = await make(send_dimensions=True).embed(request("one", dimensions=16))
        assert provider.last_body["dimensions"] == 16
        assert len(vectors[0]) == 4 * 16

    async def test_a_body_of_many_megabytes_is_sent(
        self, provider: Provider, make: Make
    ) -> None:
        text = "\x01" * (1024 * 1024)  # six bytes each in JSON
        assert await make().embed(request(text)) == expected(text)

    async def test_the_first_valid_trace_of_the_texts_is_sent_on(
        self, provider: Provider, make: Make
    ) -> None:
        await make().embed(request("one", traceparents=("evil\r\nX: y", TRACEPARENT)))
        assert provider.last_headers["traceparent"] == TRACEPARENT

    async def test_a_path_and_a_query_of_the_address_are_kept(
        self, provider: Provider, make: Make
    ) -> None:
        await make(url=provider.url + "/?api-version=1").embed(request("one"))
        assert provider.requests == 1

    @pytest.mark.parametrize(
        "url",
        ["", "localhost:80", "ftp://host/v1", "http://", "http://u:p@host/v1", "http://h:x/v1"],
    )
    def test_an_address_that_cannot_work_is_refused_at_start(self, url: str) -> None:
        with pytest.raises(ConfigError, match=r"embedding\.url"):
            HttpEmbedder(options_for(url))


class TestErrors:
    @pytest.mark.parametrize(
        ("reply", "error", "status"),
        [
            (scripted.status(400), RejectedInput, 400),
            (scripted.status(400, code="content_filter"), RejectedInput, 400),
            (
                scripted.status(400, code="context_length_exceeded", param="input"),
                RejectedInput,
                400,
            ),
            (scripted.status(400, f"model not what {CANARY} unauthorized"), RejectedInput, 400),
            (scripted.status(413), RejectedInput, 413),
            (scripted.status(422), RejectedInput, 422),
            (
                scripted.error_body(422, b'{"error": "x", "error_type": "Tokenizer"}'),
                RejectedInput,
                422,
            ),
            (
                scripted.error_body(422, b'{"detail": [{"loc": ["body", "input", 0]}]}'),
                RejectedInput,
                422,
            ),
            (scripted.error_body(400, b"\xff" * 100), RejectedInput, 400),
            (scripted.error_body(400, b"[" * 50_000), RejectedInput, 400),
            (scripted.error_body(400, b"x" * 200_000), RejectedInput, 400),
            (scripted.status(400, code="model_not_found"), ProviderMisconfigured, 400),
            (scripted.status(400, code="invalid_api_key"), KeyRefused, 400),
            (scripted.status(400, code="insufficient_quota"), QuotaExhausted, 400),
            (scripted.status(400, code="billing_hard_limit_reached"), QuotaExhausted, 400),
            (scripted.status(400, param="model"), ProviderMisconfigured, 400),
            (scripted.status(400, param="dimensions"), ProviderMisconfigured, 400),
            (scripted.status(400, "Incorrect API key provided"), KeyRefused, 400),
            (
                scripted.status(400, "Invalid model name passed in model=x"),
                ProviderMisconfigured,
                400,
            ),
            (
                scripted.error_body(422, b'{"detail": [{"loc": ["body", "dimensions"]}]}'),
                ProviderMisconfigured,
                422,
            ),
            (
                scripted.error_body(400, b'{"error": "Invalid model name passed"}'),
                ProviderMisconfigured,
                400,
            ),
            (scripted.status(401), KeyRefused, 401),
            (scripted.status(402), QuotaExhausted, 402),
            (scripted.status(403), Forbidden, 403),
            (scripted.status(404), ProviderMisconfigured, 404),
            (scripted.status(408), ProviderUnavailable, 408),
            (scripted.status(409), ProviderUnavailable, 409),
            (scripted.status(424), ProviderUnavailable, 424),
            (scripted.status(425), ProviderUnavailable, 425),
            (scripted.status(429, code="insufficient_quota"), QuotaExhausted, 429),
            (scripted.status(500), ProviderUnavailable, 500),
            (scripted.status(502), ProviderUnavailable, 502),
            (scripted.status(503), ProviderUnavailable, 503),
            (scripted.status(504), ProviderUnavailable, 504),
            (scripted.status(529), ProviderUnavailable, 529),
            (scripted.status(204), BadOutput, 204),
            (scripted.status(429), RateLimited, 429),
            (scripted.status(503, retry_after="1"), RateLimited, 503),
            (scripted.status(503, headers={"retry-after-ms": "9"}), RateLimited, 503),
            (
                scripted.status(503, headers={"x-ratelimit-reset-requests": "1s"}),
                ProviderUnavailable,
                503,
            ),
        ],
    )
    async def test_each_status_says_what_to_do_next(
        self, provider: Provider, make: Make, reply: scripted.Reply, error: type, status: int
    ) -> None:
        embedder = make()
        provider.next(reply)
        with pytest.raises(error) as caught:
            await embedder.embed(request())
        assert type(caught.value) is error
        assert caught.value.facts.provider_status == status
        assert CANARY not in str(caught.value)
        assert embedder.errors == {str(status): 1}
        assert provider.requests == 1

    @pytest.mark.parametrize(
        ("headers", "seconds"),
        [
            ({"Retry-After": "7"}, 7.0),
            ({"retry-after-ms": "250", "Retry-After": "7"}, 0.25),
            ({"Retry-After": "nonsense"}, None),
            ({}, None),
        ],
    )
    async def test_a_throttle_carries_the_hint_that_was_given(
        self, provider: Provider, make: Make, headers: dict[str, str], seconds: float | None
    ) -> None:
        provider.next(scripted.status(429, headers=headers))
        with pytest.raises(RateLimited) as caught:
            await make().embed(request())
        assert caught.value.retry_after_seconds == seconds

    @pytest.mark.parametrize(
        ("value", "should_retry"),
        [("true", True), ("False", False), ("maybe", None), (None, None)],
    )
    async def test_it_is_told_whether_another_try_makes_sense(
        self, provider: Provider, make: Make, value: str | None, should_retry
    ) -> None:
        headers = {} if value is None else {"x-should-retry": value}
        provider.next(scripted.status(500, headers={**headers, "Retry-After": "3"}))
        with pytest.raises(ProviderUnavailable) as caught:
            await make().embed(request())
        assert caught.value.should_retry is should_retry
        assert caught.value.retry_after_seconds == 3

    async def test_a_throttle_that_names_a_date_is_counted_from_now(
        self, provider: Provider, make: Make
    ) -> None:
        provider.next(scripted.status(429, retry_after="Fri, 31 Dec 1999 23:59:59 GMT"))
        with pytest.raises(RateLimited) as past:
            await make().embed(request())
        provider.next(scripted.status(429, retry_after="Fri, 31 Dec 2100 23:59:59 GMT"))
        with pytest.raises(RateLimited) as future:
            await make().embed(request())
        assert past.value.retry_after_seconds == 0
        assert future.value.retry_after_seconds > 3600

    @pytest.mark.parametrize(
        ("reply", "setting"),
        [
            (scripted.status(401), "embedding.api_key_variable"),
            (scripted.status(403), "embedding.api_key_variable"),
            (scripted.status(404), "embedding.url"),
            (scripted.redirect("/v1/embeddings", 301), "embedding.url"),
            (scripted.redirect("/v1/embeddings", 302), "embedding.url"),
            (scripted.redirect("/v1/embeddings", 307), "embedding.url"),
            (scripted.redirect("/v1/embeddings", 308), "embedding.url"),
            (scripted.status(400, param="dimensions"), "embedding.send_dimensions"),
        ],
    )
    async def test_a_mistake_of_ours_names_the_setting_to_check(
        self, provider: Provider, make: Make, reply: scripted.Reply, setting: str
    ) -> None:
        provider.next(reply)
        with pytest.raises(ProviderUnavailable, match=setting.replace(".", r"\.")):
            await make().embed(request())
        assert provider.requests == 1

    async def test_a_provider_that_is_not_there_is_unavailable(self, make: Make) -> None:
        with socket.socket() as bound_and_silent:
            bound_and_silent.bind(("127.0.0.1", 0))
            address = "{}:{}".format(*bound_and_silent.getsockname())
            embedder = make(url=f"http://{address}/v1")
            with pytest.raises(ProviderUnavailable, match=f"no connection: {address}"):
                await embedder.embed(request())
        assert embedder.errors == {"connect": 1}

    async def test_a_certificate_that_is_not_trusted_is_a_matter_of_configuration(
        self, make: Make, tmp_path
    ) -> None:
        certificates = Certificates(tmp_path)
        certificates.create()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(
            certificates.server_certificate_file, certificates.server_key_file
        )

        async def close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.close()

        server = await asyncio.start_server(close, "127.0.0.1", 0, ssl=context)
        async with server:
            embedder = make(url=f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")
            with pytest.raises(ProviderMisconfigured, match="certificate is not trusted"):
                await embedder.embed(request())
        assert embedder.errors == {"certificate": 1}

    async def test_no_answer_in_time_is_unavailable(
        self, provider: Provider, make: Make
    ) -> None:
        embedder = make(timeout_seconds=0.05)
        provider.next(scripted.held(asyncio.Event()))
        with pytest.raises(ProviderUnavailable, match="no answer in time"):
            await embedder.embed(request())
        assert embedder.errors == {"timeout": 1}
        assert embedder.active_connections == 0

    async def test_an_error_whose_body_breaks_off_is_known_by_its_status(
        self, provider: Provider, make: Make
    ) -> None:
        async def reply(call: scripted.Call) -> scripted.web.StreamResponse:
            response = scripted.web.StreamResponse(status=429, headers={"Content-Length": "99"})
            await response.prepare(call.request)
            await response.write(b'{"error"')
            call.request.transport.close()
            return response

        provider.next(reply)
        with pytest.raises(RateLimited) as caught:
            await make().embed(request())
        assert caught.value.status == 429

    @pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
    async def test_a_truncated_answer_is_unavailable(
        self, provider: Provider, make: Make, share: float
    ) -> None:
        embedder = make()
        provider.next(scripted.truncated(share))
        with pytest.raises(BadOutput, match="broke off"):
            await embedder.embed(request())
        assert embedder.errors == {"truncated": 1}
        assert embedder.requests == 1

    async def test_an_answer_that_announces_too_much_is_not_read(
        self, provider: Provider, make: Make
    ) -> None:
        embedder = make(max_answer_bytes=2000)
        provider.next(scripted.announced(2001))
        with pytest.raises(BadOutput, match=r"embedding\.max_answer_bytes"):
            await embedder.embed(request())
        assert embedder.errors == {"too_long": 1}
        assert embedder.active_connections == 0

    async def test_an_answer_without_an_end_is_cut_off(
        self, provider: Provider, make: Make
    ) -> None:
        embedder = make(max_answer_bytes=200_000)
        provider.next(scripted.endless())
        with pytest.raises(BadOutput, match=r"embedding\.max_answer_bytes"):
            await embedder.embed(request())
        await provider.idle()

    async def test_a_compressed_bomb_is_cut_off(self, provider: Provider, make: Make) -> None:
        async def bomb(_: scripted.Call) -> scripted.web.Response:
            content = zlib.compress(b" " * 10_000_000)
            return scripted.web.Response(body=content, headers={"Content-Encoding": "deflate"})

        provider.next(bomb)
        with pytest.raises(BadOutput, match=r"embedding\.max_answer_bytes"):
            await make(max_answer_bytes=100_000).embed(request())

    async def test_an_answer_that_drips_ends_with_the_time_limit(
        self, provider: Provider, make: Make
    ) -> None:
        provider.next(scripted.endless(b" ", 0.01))
        with pytest.raises(BadOutput, match="did not end in time"):
            await make(timeout_seconds=0.1).embed(request())
        await provider.idle()

    async def test_an_error_without_an_end_is_still_understood(
        self, provider: Provider, make: Make
    ) -> None:
        async def reply(call: scripted.Call) -> scripted.web.StreamResponse:
            response = scripted.web.StreamResponse(status=500)
            await response.prepare(call.request)
            while True:
                await response.write(b"x" * 4096)

        embedder = make()
        provider.next(reply)
        with pytest.raises(ProviderUnavailable) as caught:
            await embedder.embed(request())
        assert caught.value.status == 500
        assert embedder.bytes_in < 200_000

    @pytest.mark.parametrize(
        ("headers", "request_id"),
        [
            ({"x-request-id": "req_7f3e"}, "req_7f3e"),
            ({"X-Request-Id": "a8098c1a-f86e-11da-bd1a-00112444be1e"}, ...),
            ({"request-id": "id-1"}, "id-1"),
            ({"apim-request-id": "id-2"}, "id-2"),
            ({"x-ms-request-id": "id-3"}, "id-3"),
            ({"x-amzn-requestid": "id-4"}, "id-4"),
            ({"apim-request-id": "other", "x-request-id": "first"}, "first"),
            ({"x-request-id": f"it says {CANARY}", "apim-request-id": "id-5"}, "id-5"),
            ({"x-request-id": CANARY}, None),
            ({"x-request-id": "x" * 129}, None),
            ({"x-request-id": "-"}, None),
            ({"x-request-id": "caf\u00e9"}, None),
            ({"x-other": "id-6"}, None),
        ],
    )
    @pytest.mark.parametrize("status", [400, 429, 401, 500])
    async def test_an_error_says_by_what_the_provider_finds_the_request(
        self,
        provider: Provider,
        make: Make,
        status: int,
        headers: dict[str, str],
        request_id: object,
    ) -> None:
        provider.next(scripted.status(status, headers=headers))
        with pytest.raises(WorkerError) as caught:
            await make().embed(request())
        expected = next(iter(headers.values())) if request_id is ... else request_id
        assert caught.value.facts == Facts(status, expected)

    @pytest.mark.parametrize(
        "reply",
        [
            scripted.changed(lambda items: items[:-1]),
            scripted.truncated(),
            scripted.announced(10_000_000),
        ],
        ids=["wrong", "truncated", "too long"],
    )
    async def test_a_wrong_answer_says_so_too(
        self, provider: Provider, make: Make, reply: scripted.Reply
    ) -> None:
        provider.headers = {"x-request-id": "req_200"}
        provider.next(reply)
        with pytest.raises(BadOutput) as caught:
            await make(max_answer_bytes=1_000_000).embed(request())
        assert caught.value.facts == Facts(200, "req_200")

    async def test_no_answer_has_no_facts(self, provider: Provider, make: Make) -> None:
        await provider.close()
        with pytest.raises(ProviderUnavailable) as caught:
            await make().embed(request())
        assert caught.value.facts == Facts()

    def test_every_error_of_aiohttp_has_a_class_of_its_own(self) -> None:
        """A new error class of aiohttp turns this red: name it in `FAILURES`."""
        not_of_a_post = {
            "BadContentDispositionHeader",  # warnings about uploads
            "BadContentDispositionParam",
            "ClientError",  # the root
            "EofStream",  # inside the reader
            "UploadAbortedError",  # only with an upload tracker
            "WSMessageTypeError",
            "WebSocketError",
        }
        unmapped = {
            name
            for name, error in vars(aiohttp).items()
            if isinstance(error, type)
            and issubclass(error, BaseException)
            and not any(
                issubclass(error, known) and known not in {aiohttp.ClientError, OSError}
                for known, _, _ in http_failures.FAILURES
            )
        }
        assert unmapped == not_of_a_post

    def test_the_nearest_class_is_named_first(self) -> None:
        classes = [error for error, _, _ in http_failures.FAILURES]
        for place, error in enumerate(classes):
            assert not any(issubclass(error, earlier) for earlier in classes[:place])


class TestConnections:
    async def test_a_connection_is_used_again_also_after_errors(
        self, provider: Provider, make: Make
    ) -> None:
        embedder = make()
        provider.next(scripted.status(400), scripted.status(500), scripted.status(429))
        for _ in range(3):
            with pytest.raises((ProviderUnavailable, RejectedInput)):
                await embedder.embed(request())
        await embedder.embed(request())
        assert len(provider.clients) == 1

    async def test_a_pooled_connection_that_was_closed_costs_nothing(
        self, provider: Provider, make: Make
    ) -> None:
        embedder = make()
        provider.next(scripted.ok(), scripted.disconnect())
        await embedder.embed(request("one"))
        assert await embedder.embed(request("two")) == expected("two")
        assert embedder.requests == provider.requests == 3

    async def test_a_new_connection_that_was_closed_is_an_error(
        self, provider: Provider, make: Make
    ) -> None:
        embedder = make()
        provider.next(scripted.disconnect())
        with pytest.raises(ProviderUnavailable, match="the connection was closed"):
            await embedder.embed(request("one"))
        assert provider.requests == 1
        assert embedder.errors == {"disconnected": 1}

    async def test_only_one_repeat_is_free(self, provider: Provider, make: Make) -> None:
        embedder = make()
        provider.next(scripted.ok(), scripted.disconnect(), scripted.disconnect())
        await embedder.embed(request("one"))
        with pytest.raises(ProviderUnavailable):
            await embedder.embed(request("two"))
        assert provider.requests == 3

    @pytest.mark.parametrize(
        "reply", [scripted.truncated(), scripted.aborted(), scripted.half_a_header()]
    )
    async def test_an_answer_that_began_is_not_asked_for_again(
        self, provider: Provider, make: Make, reply: scripted.Reply
    ) -> None:
        embedder = make()
        provider.next(scripted.ok(), reply)
        await embedder.embed(request("one"))
        with pytest.raises(ProviderUnavailable):
            await embedder.embed(request("two"))
        assert provider.embedded["two"] == 1

    async def test_a_call_given_up_in_mid_body_leaks_no_connection(
        self, provider: Provider, make: Make
    ) -> None:
        embedder = make()
        for _ in range(3):
            provider.next(scripted.endless(b" ", 0.001))
            async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
                call = tasks.create_task(embedder.embed(request("one")))
                await provider.in_flight(1)
                assert embedder.active_connections == 1
                call.cancel()
            assert embedder.active_connections == 0
            await provider.idle()
        assert await embedder.embed(request("one")) == expected("one")
        assert len(provider.clients) == 4

    async def test_active_connections_are_those_that_carry_a_request(
        self, provider: Provider, make: Make
    ) -> None:
        """The canary of `_acquired`, an attribute that aiohttp does not promise."""
        embedder = make()
        assert embedder.active_connections == 0
        gate = asyncio.Event()
        provider.script = lambda _: scripted.held(gate)
        async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
            for number in range(5):
                tasks.create_task(embedder.embed(request(str(number))))
            await provider.in_flight(5)
            assert embedder.active_connections == 5
            gate.set()
        assert embedder.active_connections == 0

    async def test_after_closing_a_call_is_unavailable(self, make: Make) -> None:
        embedder = make()
        await embedder.embed(request("one"))
        await embedder.close()
        with pytest.raises(ProviderUnavailable, match="closed"):
            await embedder.embed(request("one"))

    async def test_each_request_is_observed_with_its_end(
        self, provider: Provider, make: Make
    ) -> None:
        seen: list[tuple[float, str]] = []
        embedder = make(
            observe=lambda seconds, outcome: seen.append((seconds, outcome)),
            timeout_seconds=0.2,
        )
        provider.next(scripted.ok(), scripted.status(429), scripted.held(asyncio.Event()))
        await embedder.embed(request())
        for _ in range(2):
            with pytest.raises(ProviderUnavailable):
                await embedder.embed(request())
        assert [outcome for _, outcome in seen] == ["200", "429", "timeout"]
        assert seen[2][0] >= 0.2
        assert embedder.bytes_in > 0


class TestKey:
    async def test_the_key_of_the_variable_is_sent(
        self, provider: Provider, make: Make
    ) -> None:
        provider.key = "secret"
        embedder = make({"THE_KEY": " secret\n"}, api_key_variable="THE_KEY")
        assert await embedder.embed(request("one")) == expected("one")

    async def test_a_rotated_key_file_is_read_again(
        self, provider: Provider, make: Make, tmp_path
    ) -> None:
        file = tmp_path / "key"
        file.write_text("first\n")
        provider.key = "first"
        embedder = make({"THE_KEY": "unused"}, api_key_variable="THE_KEY", api_key_file=file)
        await embedder.embed(request("one"))
        before = file.stat()
        file.write_text("other\n")
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
        provider.key = "other"
        await embedder.embed(request("one"))

    async def test_a_key_file_is_not_read_again_while_it_is_the_same(
        self, provider: Provider, make: Make, tmp_path
    ) -> None:
        file = tmp_path / "key"
        file.write_text("first")
        provider.key = "first"
        embedder = make(api_key_file=file)
        await embedder.embed(request("one"))
        before = file.stat()
        with file.open("r+") as same:
            same.write("other")
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        await embedder.embed(request("one"))

    async def test_the_old_key_is_used_while_the_file_is_being_replaced(
        self, provider: Provider, make: Make, tmp_path
    ) -> None:
        file = tmp_path / "key"
        file.write_text("first")
        provider.key = "first"
        embedder = make(api_key_file=file)
        await embedder.embed(request("one"))
        file.write_text("")
        await embedder.embed(request("one"))
        file.unlink()
        await embedder.embed(request("one"))

    @pytest.mark.parametrize("content", [None, "", "two\nlines", "ключ", "\x00"])
    async def test_a_file_without_a_key_is_said_and_nothing_is_sent(
        self, provider: Provider, make: Make, tmp_path, content: str | None
    ) -> None:
        file = tmp_path / "key"
        if content is not None:
            file.write_text(content)
        with pytest.raises(ProviderMisconfigured, match=r"embedding\.api_key_file") as caught:
            await make(api_key_file=file).embed(request("one"))
        assert not content or content not in str(caught.value)
        assert provider.requests == 0

    async def test_no_message_holds_the_key_or_a_text(
        self, provider: Provider, make: Make
    ) -> None:
        key = "sk-canary-key"
        embedder = make({"THE_KEY": key}, api_key_variable="THE_KEY")
        quoting = json.dumps({"error": {"message": f"{CANARY} {key}", "code": "a code"}})
        statuses = (400, 401, 422, 429, 500)
        provider.next(
            *(scripted.error_body(status, quoting.encode()) for status in statuses),
            scripted.body(quoting.encode()),
            scripted.embedding(CANARY),
            scripted.disconnect(),
        )
        for _ in range(7):
            with pytest.raises((ProviderUnavailable, RejectedInput)) as caught:
                await embedder.embed(request(CANARY))
            assert CANARY not in repr(caught.value)
            assert key not in repr(caught.value)

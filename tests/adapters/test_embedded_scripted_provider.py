"""The scripted provider: vectors that anybody can compute again, a quota, and true counts."""

import base64

import aiohttp
import msgspec
import numpy as np
import pytest

from worker.embedded.scripted_provider import Pool, Quota, ScriptedProvider

DIMENSIONS = 48
TEXTS = ["one text", "another", "Österreich 世界", ""]


@pytest.fixture(scope="module")
def pool():
    return Pool(DIMENSIONS)


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def decoded(parts):
    return msgspec.json.decode(b"".join(parts))


# ---- vectors ----


def test_a_vector_depends_on_the_text_alone(pool):
    other = Pool(DIMENSIONS)
    for text in TEXTS:
        assert (pool.vector(text) == other.vector(text)).all()


@pytest.mark.parametrize("dimensions", [1, 2, 3, 8, 11, 12, 13, 100, 1536])
def test_vectors_have_the_dimensions_asked_for_and_length_one(dimensions):
    pool = Pool(dimensions)
    for text in TEXTS:
        vector = pool.vector(text)
        assert vector.shape == (dimensions,)
        assert vector.dtype == np.dtype("<f4")
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("dimensions", [1, 8, 13, 48, 1536])
def test_both_encodings_say_the_same_vector(dimensions):
    pool = Pool(dimensions)
    for text in TEXTS:
        expected = pool.vector(text)
        assert (
            np.frombuffer(base64.b64decode(decoded(pool.base64(text))), "<f4") == expected
        ).all()
        assert (np.array(decoded(pool.floats(text)), "<f4") == expected).all()


def test_hardly_any_two_of_many_texts_have_one_vector(pool):
    found = {pool.vector(f"text {number}").tobytes() for number in range(2_000)}
    assert len(found) >= 1_998


def test_vectors_lie_in_clusters():
    pool = Pool(1536)
    vectors = np.array([pool.vector(f"text {number}") for number in range(500)])
    cosines = (vectors @ vectors.T)[np.triu_indices(500, 1)]
    near = cosines[cosines > 0.4]
    assert 500 * 499 / 2 / 64 * 0.7 < len(near) < 500 * 499 / 2 / 64 * 1.3
    assert 0.7 < np.median(near) < 0.9
    assert np.median(np.abs(cosines)) < 0.1


# ---- the quota ----


def test_a_quota_lets_a_second_s_worth_through_at_once_and_then_as_much_as_it_says():
    clock = Clock()
    quota = Quota(requests_per_minute=600, clock=clock)
    assert [quota.refuse_seconds(1) for _ in range(10)] == [0] * 10
    assert quota.refuse_seconds(1) == pytest.approx(0.1)
    taken = 0
    for _ in range(6_000):
        clock.now += 0.01
        taken += quota.refuse_seconds(1) == 0
    assert taken == pytest.approx(600, abs=1)


def test_what_is_refused_takes_nothing_of_the_quota():
    clock = Clock()
    quota = Quota(requests_per_minute=60, clock=clock)
    assert quota.refuse_seconds(1) == 0
    assert all(quota.refuse_seconds(1) > 0 for _ in range(100))
    clock.now += 1
    assert quota.refuse_seconds(1) == 0


def test_tokens_have_a_quota_of_their_own():
    clock = Clock()
    quota = Quota(tokens_per_minute=60_000, clock=clock)
    assert quota.refuse_seconds(600) == 0
    assert quota.refuse_seconds(600) == pytest.approx(0.2)
    assert quota.refuse_seconds(400) == 0


def test_a_request_that_is_larger_than_a_second_s_worth_passes_and_is_owed():
    clock = Clock()
    quota = Quota(tokens_per_minute=60_000, clock=clock)
    assert quota.refuse_seconds(5_000) == 0
    assert quota.refuse_seconds(1) == pytest.approx(4.001)


def test_no_quota_refuses_nothing():
    quota = Quota()
    assert all(quota.refuse_seconds(10**9) == 0 for _ in range(1_000))


# ---- over HTTP ----


class Client:
    def __init__(self, session, url):
        self.session = session
        self.url = url

    async def ask(self, *texts, **fields):
        body = {"model": "m", "input": list(texts), **fields}
        async with self.session.post(f"{self.url}/embeddings", json=body) as response:
            return response.status, response.headers, await response.json()

    async def stats(self):
        async with self.session.get(f"{self.url.removesuffix('/v1')}/stats") as response:
            return await response.json()


@pytest.fixture
async def served(pool):
    """`await served(quota)`: a client of a provider with this quota."""
    runners = []
    async with aiohttp.ClientSession() as session:

        async def serve(quota=None):
            runner, url = await ScriptedProvider(pool, quota or Quota()).started(0)
            runners.append(runner)
            return Client(session, url)

        yield serve
    for runner in runners:
        await runner.cleanup()


async def test_it_answers_floats_or_base64_as_it_is_asked(served, pool):
    client = await served()
    _, _, floats = await client.ask(*TEXTS)
    _, _, encoded = await client.ask(*TEXTS, encoding_format="base64", dimensions=DIMENSIONS)
    for index, text in enumerate(TEXTS):
        expected = pool.vector(text)
        assert [answer["data"][index]["index"] for answer in (floats, encoded)] == [index] * 2
        assert (np.array(floats["data"][index]["embedding"], "<f4") == expected).all()
        raw = base64.b64decode(encoded["data"][index]["embedding"])
        assert (np.frombuffer(raw, "<f4") == expected).all()
    assert floats["usage"] == {"prompt_tokens": 10, "total_tokens": 10}


async def test_it_counts_what_was_asked_and_what_came_twice(served):
    client = await served()
    await client.ask("a", "b", "a")
    await client.ask("b", "c")
    assert await client.stats() == {
        "requests": 2,
        "inputs": 5,
        "tokens": 5,
        "status_429": 0,
        "max_in_flight": 1,
        "distinct_inputs": 3,
        "repeated_inputs": 2,
    }


async def test_beyond_the_quota_it_answers_429_and_when_to_come_again(served):
    clock = Clock()
    client = await served(Quota(requests_per_minute=20, clock=clock))
    assert (await client.ask("a"))[0] == 200
    status, headers, body = await client.ask("b")
    assert (status, headers["Retry-After"]) == (429, "3")
    assert body["error"]["message"] == "beyond the quota"
    clock.now += 3
    assert (await client.ask("b"))[0] == 200
    stats = await client.stats()
    assert (stats["requests"], stats["inputs"], stats["status_429"]) == (3, 2, 1)


async def test_what_is_no_question_is_refused(served):
    client = await served()
    assert (await client.ask(1))[0] == 400
    status, _, body = await client.ask("a", dimensions=7)
    assert (status, body["error"]["message"]) == (400, "the model has 48 dimensions")

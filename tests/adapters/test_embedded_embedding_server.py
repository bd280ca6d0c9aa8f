import base64
import http.client
import io
import json

import numpy as np
import pytest
from aiohttp.test_utils import TestClient, TestServer

from tests.support.orphans import outlives_its_parent
from worker.embedded.embedding_server import MAX_BODY_BYTES, EmbeddingApi
from worker.embedded.embeddings import EmbeddedEmbeddings
from worker.embedded.wordllama_model import NAME, WordLlamaModel

STARTER = """
import pathlib, sys
from worker.embedded.embeddings import EmbeddedEmbeddings
server = EmbeddedEmbeddings(pathlib.Path(sys.argv[1]))
server.start()
print(server.pid, flush=True)
input()
"""


@pytest.fixture(scope="module")
def model():
    return WordLlamaModel()


@pytest.fixture
async def client(model):
    api = EmbeddingApi(model, count_texts=True)
    async with TestClient(TestServer(api.application())) as client:
        yield client


async def embed(client, texts, **options):
    body = {"model": NAME, "input": texts} | options
    response = await client.post("/v1/embeddings", json=body)
    assert response.status == 200, await response.text()
    return await response.json()


def vectors(answer):
    return np.array([entry["embedding"] for entry in answer["data"]], np.float32)


async def test_an_answer_looks_like_openai_s(client):
    answer = await embed(client, ["hello world", "bye"])
    assert answer["object"] == "list"
    assert answer["model"] == NAME
    assert [(entry["object"], entry["index"]) for entry in answer["data"]] == [
        ("embedding", 0),
        ("embedding", 1),
    ]
    assert vectors(answer).shape == (2, 256)
    assert answer["usage"] == {"prompt_tokens": 4, "total_tokens": 4}


async def test_a_single_text_is_answered_as_a_list_of_one(client):
    single, several = await embed(client, "hello"), await embed(client, ["hello"])
    assert single == several


async def test_vectors_are_of_unit_length_and_close_where_the_texts_are(client):
    texts = ["a cat sleeps on the sofa", "the kitten naps", "quarterly tax report of a bank"]
    found = vectors(await embed(client, texts))
    assert np.linalg.norm(found, axis=1) == pytest.approx([1, 1, 1], abs=1e-6)
    assert found[0] @ found[1] > found[0] @ found[2] + 0.1


async def test_base64_carries_the_very_same_floats(client):
    texts = ["alpha", "beta"]
    floats = vectors(await embed(client, texts))
    encoded = await embed(client, texts, encoding_format="base64")
    decoded = [
        np.frombuffer(base64.b64decode(entry["embedding"]), "<f4") for entry in encoded["data"]
    ]
    assert np.array_equal(floats, np.array(decoded))


async def test_a_vector_does_not_depend_on_the_texts_beside_it(client):
    text = "the same text"
    alone = vectors(await embed(client, [text]))
    among = vectors(await embed(client, ["long " * 500, text, "x"]))
    assert np.array_equal(alone[0], among[1])


async def test_fewer_dimensions_are_the_first_ones_at_unit_length(client):
    whole = vectors(await embed(client, "some text"))[0][:64]
    cut = vectors(await embed(client, "some text", dimensions=64))[0]
    assert cut == pytest.approx(whole / np.linalg.norm(whole), abs=1e-6)


async def test_a_vector_is_wordllama_s_own(client, model):
    import wordllama

    folder = wordllama.__file__.removesuffix("__init__.py")
    own = wordllama.WordLlama.load(cache_dir=folder, disable_download=True)
    expected = own.embed(["what it says"], norm=True)
    assert vectors(await embed(client, "what it says")) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"model": NAME, "input": ""}, 400, None),
        ({"model": NAME, "input": ["fine", ""]}, 400, None),
        ({"model": NAME, "input": []}, 400, None),
        ({"model": NAME, "input": ["x"] * 2049}, 400, None),
        ({"model": NAME, "input": [1, 2]}, 400, None),
        ({"model": NAME}, 400, None),
        ({"model": NAME, "input": "x", "encoding_format": "hex"}, 400, None),
        ({"model": NAME, "input": "x", "dimensions": 1536}, 400, "invalid_dimensions"),
        ({"model": NAME, "input": "word " * 8300}, 400, "context_length_exceeded"),
        ({"model": "gpt-9", "input": "x"}, 404, "model_not_found"),
    ],
    ids=lambda value: str(value)[:60],
)
async def test_what_cannot_be_embedded_is_refused_in_openai_s_words(client, body, status, code):
    response = await client.post("/v1/embeddings", json=body)
    error = (await response.json())["error"]
    assert (response.status, error["code"]) == (status, code)
    assert error["type"] == "invalid_request_error"
    assert error["message"]


@pytest.mark.parametrize("body", [b"{", b"\xff", b'"\\ud800"', b""])
async def test_a_body_that_is_no_json_is_refused(client, body):
    response = await client.post("/v1/embeddings", data=body)
    assert response.status == 400
    assert (await response.json())["error"]["message"]


async def test_a_body_that_is_too_long_is_refused(client):
    response = await client.post("/v1/embeddings", data=io.BytesIO(bytes(MAX_BODY_BYTES + 1)))
    assert response.status == 413
    assert (await response.json())["error"]["type"] == "invalid_request_error"


async def test_an_unknown_path_is_answered_in_openai_s_words(client):
    response = await client.get("/v1/chat/completions")
    assert (response.status, list(await response.json())) == (404, ["error"])


async def test_the_models_are_listed(client):
    answer = await (await client.get("/v1/models")).json()
    assert [model["id"] for model in answer["data"]] == [NAME]


async def test_the_stats_tell_what_was_paid_for_twice(client):
    await embed(client, ["one", "two", "two"])
    await embed(client, "two")
    await client.post("/v1/embeddings", json={"model": NAME, "input": ""})
    stats = await (await client.get("/stats")).json()
    tokens = stats.pop("tokens")
    assert tokens == 4
    assert stats == {
        "requests": 2,
        "refused": 1,
        "inputs": 4,
        "distinct_inputs": 2,
        "most_often": 3,
    }


def ask(server, path):
    connection = http.client.HTTPConnection(server.url.split("/")[2], timeout=20)
    try:
        connection.request("GET", path)
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


def test_the_server_runs_as_a_process_of_its_own_and_comes_back_at_its_url(tmp_path):
    with EmbeddedEmbeddings(tmp_path) as server:
        url = server.url
        assert url.endswith("/v1")
        assert ask(server, "/health") == {"status": "ok"}
        assert ask(server, "/stats")["distinct_inputs"] is None
        server.kill()
        with pytest.raises(ConnectionRefusedError):
            ask(server, "/health")
        server.start()
        assert server.url == url
        assert ask(server, "/health") == {"status": "ok"}


def test_the_server_dies_with_its_killed_parent(tmp_path):
    assert outlives_its_parent(STARTER, str(tmp_path)) == []

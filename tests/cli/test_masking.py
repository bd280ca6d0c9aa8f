"""A secret never appears in anything that is printed."""

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.cli.masking import mask_url, redact, secrets_of_url, shown
from worker.cli.root import main

# Marked, so that it is no part of the rest by chance; any characters around the mark.
ODD = st.text(st.characters(codec="utf-8", exclude_characters="\x00\n\r"), max_size=12)
SECRET = st.builds("{}S3CR{}".format, ODD, ODD)
URL = st.sampled_from(
    [
        "postgresql://me:{}@db:5432/docs",
        "postgres://:{}@/docs?host=db",
        "postgresql://me:{}@a:1,b:2/docs?sslmode=require",
        "postgresql://me@db/docs?password={}&sslmode=require",
        "postgresql://me@db/docs?sslpassword={}",
        "https://key:{}@provider/v1",
        "https://provider/v1?api-key={}",
        "postgresql://me:{}@db:port/docs",
    ]
)


@given(URL, SECRET)
def test_no_password_of_a_url_is_shown_quoted_or_not(url, secret):
    assert "S3CR" not in shown(url.format(secret))
    assert "S3CR" not in shown(url.format(quote(secret, safe="")))


@given(URL, SECRET, st.text(max_size=20))
def test_no_password_of_a_url_inside_of_a_message_is_shown(url, secret, words):
    secret = quote(secret, safe="")
    assert "S3CR" not in redact(f"{words} {url.format(secret)} {words}")


@given(URL, SECRET)
def test_a_known_password_is_taken_out_of_any_message(url, secret):
    written = quote(secret, safe="")
    known = secrets_of_url(url.format(written))
    assert {secret, written} <= known
    assert "S3CR" not in redact(f'invalid password "{secret}" or {written}', known)


def test_what_is_no_secret_stays_readable():
    url = "postgresql://me:hunter22@db.example:5432/docs?sslmode=require"
    assert mask_url(url) == "postgresql://me:****@db.example:5432/docs?sslmode=require"
    assert mask_url("postgresql://[::1]:5432/docs") == "postgresql://[::1]:5432/docs"
    assert mask_url("https://api.openai.com/v1") == "https://api.openai.com/v1"
    assert redact("see https://a.example/b and c") == "see https://a.example/b and c"


@given(SECRET)
def test_a_url_that_cannot_be_understood_is_not_shown_at_all(secret):
    for url in ("postgresql://me:{}/docs", "postgresql://[{}", "{}://x"):
        assert "S3CR" not in mask_url(url.format(f"a{secret}@"))


COMMANDS = [
    ("config",),
    ("config", "--json"),
    ("config", "--explain"),
    ("config", "--kafka.drain-seconds", "29"),
    ("config", "--kafka.max-poll-records", "0"),
    ("migrate", "status"),
    ("doctor", "--json"),
    ("collections", "list"),
]
URLS = [
    "postgresql://me:hunter22@127.0.0.1:1/docs",
    "postgresql://me:hunter22@127.0.0.1:port/docs",
    "postgresql://me@127.0.0.1:1/docs?password=hunter22",
    "postgresql://me:hun/ter22@127.0.0.1:1/docs",
    "mysql://me:hunter22@127.0.0.1:1/docs",
    "postgresql://me:hunter22@127.0.0.1:1/docs?target_session_attrs=hunter22",
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("url", URLS)
def test_no_command_prints_the_password_of_the_database(command, url, capsys, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", url)
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1")
    main(command)
    printed = "".join(capsys.readouterr())
    assert printed
    assert "ter22" not in printed


@pytest.mark.parametrize(
    "arguments",
    [
        ("config", "--database-password=hunter22"),
        ("config", "--database.ulr=postgresql://me:hunter22@db/x"),
        ("config", "postgresql://me:hunter22@db/x"),
    ],
)
def test_a_secret_in_the_wrong_place_is_not_repeated(arguments, embedfleet):
    ended = embedfleet(*arguments)
    assert ended.code == 2
    assert "hunter22" not in ended.err + ended.out


def test_secrets_that_variables_hold_are_taken_out_of_messages(embedfleet, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hunter22")
    ended = embedfleet("config", "sk-hunter22")
    assert ended.code == 2
    assert "hunter22" not in ended.err

"""
Secrets out of everything that is printed.

`mask_url` shows of a URL only what is known to be no secret, and nothing at all of one that
it does not understand. `redact` does the same with URLs inside of other text and takes out
secrets that are known. Nothing here ever raises.
"""

import re
from collections.abc import Collection
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

MASK = "****"
SHORTEST_SECRET = 4  # a shorter one would mask half of every sentence

# What libpq calls its parameters; all that is not here is masked.
OPEN_PARAMETERS = frozenset(
    {"host", "port", "user", "dbname", "sslmode", "application_name", "api-version"}
)
_HOST = r"(?:[\w.%-]*|\[[0-9A-Fa-f:.]+\])(?::\d+)?"
_HOSTS = re.compile(rf"{_HOST}(?:,{_HOST})*", re.ASCII)
_SCHEME = re.compile(r"[A-Za-z][\w+.-]*", re.ASCII)
_PATH = re.compile(r"[\w./~%+-]*", re.ASCII)
# Greedy on purpose: a password with a blank or a quote in it is part of the URL, too.
_URL = re.compile(
    r"\b[A-Za-z][A-Za-z0-9+.-]*://[^\n]*@[^\s'\"]*|\b[A-Za-z][\w+.-]*://[^\s'\"]+"
)


class _Parts(NamedTuple):
    scheme: str
    credentials: str
    hosts: str
    path: str
    query: list[tuple[str, str]]


def _parts(url: str) -> _Parts | None:
    """Return the parts of a URL, None of one whose password may stand anywhere."""
    try:
        parts = urlsplit(url)
        query = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        return None
    credentials, _, hosts = parts.netloc.rpartition("@")
    if parts.fragment or not _HOSTS.fullmatch(hosts) or not _PATH.fullmatch(parts.path):
        return None
    return _Parts(parts.scheme, credentials, hosts, parts.path, query)


def is_readable(url: str) -> bool:
    """Tell whether it is clear which part of a URL is which."""
    return _parts(url) is not None


def mask_url(url: str) -> str:
    """Return a URL without its password and without the values of unknown parameters."""
    parts = _parts(url)
    if parts is None:
        scheme = url.partition("://")[0]
        return f"{scheme}://{MASK}" if _SCHEME.fullmatch(scheme) else MASK
    user, colon, _ = parts.credentials.partition(":")
    login = f"{user}{colon and f':{MASK}'}@" if parts.credentials else ""
    opened = [(name, value if name in OPEN_PARAMETERS else MASK) for name, value in parts.query]
    asked = f"?{urlencode(opened, safe='*/')}" if opened else ""
    return f"{parts.scheme}://{login}{parts.hosts}{parts.path}{asked}"


def shown(value: str) -> str:
    """Return a value of the configuration as it may be printed."""
    return mask_url(value) if "://" in value else value


def secrets_of_url(url: str) -> set[str]:
    """Return what a URL holds of secrets, as they are written and as they are meant."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return set()
    written = {parts.netloc.rpartition("@")[0].partition(":")[2]}
    meant = {unquote(one) for one in written}
    meant.update(value for name, value in parse_qsl(parts.query) if name not in OPEN_PARAMETERS)
    written.update(quote(one, safe="") for one in meant)
    return {secret for secret in written | meant if secret}


def redact(text: str, secrets: Collection[str] = ()) -> str:
    """Return text in which the URLs are masked, and the known secrets."""
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= SHORTEST_SECRET:
            text = text.replace(secret, MASK)
    return _URL.sub(lambda found: mask_url(found[0]), text)

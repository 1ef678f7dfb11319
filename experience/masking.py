"""Secrets, kept out of whatever leaves the process: the terminal, files, databases.

A secret is a key, token or password of the environment, known by its variable's name, or a part of a URL. A
server that was shown one may say it again, also in base64 or percent-encoded, so texts are searched for it.
"""

import base64
import html
import json
import os
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, TypeVar
from urllib.parse import quote, quote_plus, unquote

MASK = "***"
MIN_CHARS = 6
"""Shorter ones are ordinary words, such as ``none``: they are masked where they stand in a URL only."""
MIN_DIGITS = 12
"""The same of numbers, which also stand in figures."""
MARGIN = 16_384
"""Characters that are searched for secrets behind what is kept of a text, where one may end."""

_VARIABLES = ("KEY", "TOKEN", "SECRET", "_PASS", "_PWD", "PASSWORD", "PASSWD")
_VARIABLES_OF_URLS = ("URL", "URI", "PROXY", "DSN")
"""What the names of variables end with that hold a secret, or a URL that may have one in it."""
_FIELD = re.compile(
    r"(?:(?:api|access|auth|private|secret)[-_]?key|token|secret|passw(?:or)?d|authorization)$", re.IGNORECASE
)
_USER = re.compile(r"(https?)?://([^\s/?#\"'<>]*)@", re.IGNORECASE)
_OPTION = re.compile(
    r"([?&;](?:[\w.-]*(?:key|token|secret|signature)|sig|auth|pass|pwd|[\w.-]*passw(?:or)?d)=)([^&;#\s\"'<>]+)",
    re.IGNORECASE,
)
_PLAIN = {int, float, bool, type(None)}
_of_urls: set[str] = set()
Value = TypeVar("Value")


def keep_secrets_of(url: str) -> None:
    """Mask from now on, wherever they stand, the user, password and key that a URL holds."""
    _of_urls.update(_secrets_in(url))


def masked(value: Value) -> Value:
    """A text, or what is made of lists, tuples and dictionaries of them, with ``***`` for each secret."""
    result: Value = _masked(value, masker())
    return result


def masked_beginning(text: str, most: int) -> str:
    """The beginning of a text, masked: not all of it, which takes its time where a server sends much."""
    return masked(text[: most + MARGIN])[:most]


def masker() -> Callable[[str], str]:
    """Masks texts as ``masked`` does; what is secret is looked up only once."""
    secrets = set(_of_urls)
    for name, text in os.environ.items():
        if name.upper().endswith(_VARIABLES):
            secrets.add(text)
        elif "://" in text and name.upper().endswith(_VARIABLES_OF_URLS):
            secrets |= _secrets_in(text)
    pattern = _pattern(frozenset(secrets))

    def mask(text: str) -> str:
        if "://" in text:
            text = _OPTION.sub(rf"\1{MASK}", _USER.sub(_without_user, text))
        return text if pattern is None else pattern.sub(MASK, text)

    return mask


def _masked(value: Any, mask: Callable[[str], str]) -> Any:
    kind = type(value)
    if kind in _PLAIN:  # most of what goes into a database
        return value
    if isinstance(value, str):
        return mask(value)
    if kind in (list, tuple):
        return kind(_masked(item, mask) for item in value)
    if isinstance(value, Mapping):
        return {
            _masked(name, mask): MASK
            if isinstance(name, str) and isinstance(item, str) and item and _FIELD.search(name)
            else _masked(item, mask)
            for name, item in value.items()
        }
    return value


def _without_user(found: re.Match[str]) -> str:
    scheme, user = found.groups()
    name, _, password = user.partition(":")
    if scheme:  # http, whose user is often the key
        return f"{scheme}://{MASK}@"
    return f"://{name}:{MASK}@" if password else found[0]


def _secrets_in(url: str) -> set[str]:
    found = {value for _, value in _OPTION.findall(url)}
    for scheme, user in _USER.findall(url):
        name, _, password = user.partition(":")
        found |= {password, name} if scheme else {password}
    return found | {unquote(secret) for secret in found}


@lru_cache(maxsize=8)
def _pattern(secrets: frozenset[str]) -> re.Pattern[str] | None:
    forms = {
        form
        for secret in secrets
        if len(secret.strip()) >= (MIN_DIGITS if secret.strip().isdigit() else MIN_CHARS)
        for form in _forms(secret.strip())
    }
    if not forms:
        return None
    either = (
        re.sub("%[0-9A-Fa-f]{2}", lambda found: f"(?i:{found[0]})", re.escape(form))  # %2f is %2F
        for form in sorted(forms, key=len, reverse=True)
    )
    return re.compile("|".join(either))


def _forms(secret: str) -> set[str]:
    """A secret as it may be written."""
    raw = secret.encode(errors="surrogateescape")
    quoted = {quote(raw, safe=""), quote(raw), quote_plus(raw)}
    escaped = {html.escape(secret), json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]}
    return {secret, raw.hex(), raw.hex().upper(), *quoted, *escaped, *_in_base64(raw)}


def _in_base64(raw: bytes) -> set[str]:
    """The characters that depend on ``raw`` alone, wherever it begins in what was encoded."""
    forms = set()
    for before in range(3):
        end = (before + len(raw)) * 8 // 6
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            forms.add(encode(bytes(before) + raw).decode()[-(-before * 8 // 6) : end])
    return forms

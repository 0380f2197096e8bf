"""What is secret in a review, replaced by placeholders: for the desk's page, its recordings, and
the test cases that are saved there."""

from __future__ import annotations

import base64
import collections
import contextlib
import json
import re
from typing import Any

SENSITIVE_KEY = re.compile(
    r"(token|password|passwd|secret[-_]?key|api[-_]?key|access[-_]?key|private[-_]?key|credentials?)$",
    re.IGNORECASE,
)
SENSITIVE_TEXT = re.compile(
    r"(?<![\w-])eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"  # a JSON Web Token
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"  # user:password in a URL
    r"|(?i:(?<=bearer )[\w.~+/=-]{8,})"
    r"|(?i:(?<=token=)|(?<=password=)|(?<=passwd=)|(?<=api-key=)|(?<=apikey=)|(?<=secret=))"
    r"[^\s\"'&,;]+",
    re.DOTALL,
)
PLACEHOLDER = re.compile(r"redacted-(\d{3,9})|cmVkYWN0ZWQt([A-Za-z0-9+/]{4,12}={0,2})")
SHORTEST = 6  # characters of a value that is looked for inside other texts


class Redaction:
    """Replaces what is secret in one review, and what repeats it, by numbered placeholders.

    Secret: a Secret's data and stringData; every `env` value; what stands under a key that ends in
    token, password, key and the like; tokens, private keys and passwords within a text, also in
    JSON within a text. Then each place where such a value turns up again, plain, in base64 or
    escaped: a policy may quote it in a denial. An env value that only a policy adds stays, as it
    comes from the policy's source. The same value gets the same placeholder, so that a difference
    stays one. Placeholders that a recording, or a forger, brings stay; new ones count on from them.
    """

    def __init__(self, document: Any) -> None:
        self.strict = True
        self.placeholders: dict[str, str] = {}  # by what they stand for
        self.originals: dict[str, str] = {}  # by placeholder, and by whole text with some in it
        self.scrubbed: dict[str, str] = {}  # what scrub() made of a text, by what is known by now
        self.lengths: dict[str, list[int]] = collections.defaultdict(list)  # by how a secret starts
        found = PLACEHOLDER.finditer(json.dumps(document))
        self.count = max(map(_placeholder_number, found), default=0)
        self.clean(document)
        self.strict = False

    def hide(self, text: str) -> str:
        """The placeholder for a secret; learns it, and the other forms it may turn up in."""
        if not text or PLACEHOLDER.fullmatch(text):
            return text
        if text not in self.placeholders:
            self.count += 1
            plain = f"redacted-{self.count:03d}"
            encoded = base64.b64encode(plain.encode()).decode()
            decoded = _decoded(text)
            self._learn(text, plain if decoded is None else encoded)
            self._learn((decoded or b"").decode("utf-8", "replace"), plain)
            self._learn(json.dumps(text)[1:-1], plain)
            self._learn(base64.b64encode(text.encode()).decode(), encoded)
        return self.placeholders[text]

    def _learn(self, form: str, placeholder: str) -> None:
        if form and form not in self.placeholders:
            self.placeholders[form] = placeholder
            self.originals.setdefault(placeholder, form)
            self.scrubbed.clear()
            lengths = self.lengths[form[:SHORTEST]] if len(form) >= SHORTEST else []
            if len(form) not in lengths:
                lengths.append(len(form))
                lengths.sort(reverse=True)

    def clean(self, value: Any, key: str = "") -> Any:
        """A copy of a JSON value without secrets. RecursionError if it is nested too deeply."""
        if type(value) is str:
            return self.hide(value) if SENSITIVE_KEY.search(key) else self.scrub(value)
        if type(value) is list:
            if key == "env":
                return [self._clean_variable(item) for item in value]
            return [self.clean(item, key) for item in value]
        if type(value) is not dict:
            return value
        secret = ("data", "stringData") if value.get("kind") == "Secret" else ()
        return {k: self._hide_all(v) if k in secret else self.clean(v, k) for k, v in value.items()}

    def _clean_variable(self, item: Any) -> Any:
        if type(item) is not dict or type(item.get("value")) is not str:
            return self.clean(item)
        value, name = item["value"], str(item.get("name"))
        known = self.strict or value in self.placeholders or SENSITIVE_KEY.search(name)
        shown = self.hide(value) if known else self.scrub(value)
        return {k: shown if k == "value" else self.clean(v, k) for k, v in item.items()}

    def _hide_all(self, data: Any) -> Any:
        if type(data) is not dict:
            return self.clean(data)
        return {k: self.hide(v) if type(v) is str else self.clean(v) for k, v in data.items()}

    def scrub(self, text: str) -> str:
        """A text without the secrets in it: JSON, patterns, values known by now."""
        if text not in self.scrubbed:
            self.scrubbed[text] = self._scrub(text)
            self.originals.setdefault(self.scrubbed[text], text)
        return self.scrubbed[text]

    def _scrub(self, text: str) -> str:
        if text[:1] in ("{", "["):
            with contextlib.suppress(ValueError):
                document = json.loads(text)
                cleaned = self.clean(document)
                if cleaned != document:
                    text = json.dumps(cleaned, separators=(",", ":"), ensure_ascii=False)
        text = SENSITIVE_TEXT.sub(lambda match: self.hide(match[0]), text)
        return self._replace_known(text) if self.lengths else text

    def _replace_known(self, text: str) -> str:
        """The longest first. Nearly linear in the text, by a table of first characters, as there
        may be thousands of values."""
        parts, start, place = [], 0, 0
        while place <= len(text) - SHORTEST:
            for length in self.lengths.get(text[place : place + SHORTEST], ()):
                if placeholder := self.placeholders.get(text[place : place + length]):
                    parts += [text[start:place], placeholder]
                    start = place = place + length
                    break
            else:
                place += 1
        return "".join([*parts, text[start:]])

    def restore(self, value: Any) -> Any:
        """A copy with the secrets back in the place of their placeholders."""
        if type(value) is dict:
            return {key: self.restore(item) for key, item in value.items()}
        if type(value) is list:
            return [self.restore(item) for item in value]
        if type(value) is not str:
            return value
        if value in self.originals:
            return self.originals[value]
        return PLACEHOLDER.sub(lambda match: self.originals.get(match[0], match[0]), value)


class NoRedaction(Redaction):
    """For --unredacted: everything stays."""

    def clean(self, value: Any, key: str = "") -> Any:
        return value

    def scrub(self, text: str) -> str:
        return text


def _decoded(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return None


def _placeholder_number(match: re.Match[str]) -> int:
    number = match[1] or (_decoded(match[2]) or b"").decode("ascii", "replace")
    return int(number) if number.isdigit() else 0

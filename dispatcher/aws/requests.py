"""The requests of InvokeEndpointAsync and PutObject as bytes, signed at the moment they leave.

They are the SDK's requests, header for header: `knowledge` compares them at each start, the tests at length. Only
`Accept: */*` is left out, which the SDK's HTTP client adds and nobody signs.

Jobs of a shard differ in their id and their payload. So what they share is written once, as pieces of text with slots
between them (`_Form`), or as a text to be filled in (`_PutForm`), and a request costs two joins of text, a hash of its body,
and a signature.
"""

import re
from collections.abc import Callable, Mapping
from hashlib import sha256
from itertools import count
from random import SystemRandom
from typing import NamedTuple
from urllib.parse import quote

from botocore.utils import normalize_url_path

from dispatcher.aws.bodies import Upload
from dispatcher.aws.http import Request
from dispatcher.aws.knowledge import Target
from dispatcher.aws.signing import ALGORITHM, EMPTY_SHA256, Keys, Signer, canonical_headers, squeezed
from dispatcher.interfaces import Invocation

_FORMS = 1_024
"""Forms kept: one for each shard that is being sent, and many to spare. Where each job has attributes of its own they are of no use."""

_UNWRITABLE = re.compile("[\0\r\n\ud800-\udfff]")
_UNRESERVED = "-._~"
_SLOT = "\0"
"""Where a value comes in that changes from request to request; no header can hold it."""


def unwritable(*values: str | None) -> bool:
    """Whether a value cannot stand in a header: it would end the line, or has no bytes."""
    text = "".join([value for value in values if value])
    return not text.isprintable() and _UNWRITABLE.search(text) is not None


class _InvocationIds:
    """Ids in the form of a random UUID: what is random is the process's own, the rest is a number."""

    def __init__(self) -> None:
        noise = f"{SystemRandom().getrandbits(72):018x}"
        self._start = f"{noise[:8]}-{noise[8:12]}-4{noise[12:15]}-8{noise[15:]}-"
        self._numbers = count(1)

    def __call__(self) -> str:
        return f"{self._start}{next(self._numbers):012x}"


next_id: Callable[[], str] = _InvocationIds()
"""For `amz-sdk-invocation-id`."""


# --- InvokeEndpointAsync ---------------------------------------------------------------------------------------------


class _Form(NamedTuple):
    """The pieces before, between and behind the slots.

    `canonical`: stamp, filename, inference id, input location; then the body's hash.
    `head`: filename, inference id, input location, stamp, credential; then the signature.
    """

    canonical: tuple[str, ...]
    head: tuple[str, ...]


class InvokeRequests:
    """Builds requests for one target. Keeps the signer and the forms of the credentials last used."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._signer = _unsigned(target)
        self._forms: dict[tuple[object, ...], _Form] = {}

    def build(self, it: Invocation, credentials: Keys, now: float) -> Request:
        """The request as it has to leave now. Its header values have to be writable."""
        if credentials is not self._signer.credentials:
            self._signer = Signer(credentials, self._target.region, self._target.service)
            self._forms.clear()
        (c0, c1, c2, c3, c4), (h0, h1, h2, h3, h4, h5) = self._form(it)
        moment = self._signer.at(now)
        file, name, location, body = it.filename or "", it.inference_id, it.input_location or "", it.body or b""
        hashed = sha256(body).hexdigest() if body else EMPTY_SHA256
        signed = f"{c0}{moment.stamp}{c1}{squeezed(file)}{c2}{squeezed(name)}{c3}{squeezed(location)}{c4}{hashed}"
        head = (
            f"{h0}{file}{h1}{name}{h2}{location}{h3}{moment.stamp}{h4}{moment.credential}{h5}"
            f"{moment.signature(signed.encode())}{_ENDING}{next_id()}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return Request(head.encode(), body)

    def _form(self, it: Invocation) -> _Form:
        key = (
            *(it.endpoint, it.output_path_extension, it.content_type, it.accept, it.custom_attributes),
            *(it.request_ttl_seconds, it.invocation_timeout_seconds, it.filename is None, it.input_location is None),
        )
        form = self._forms.get(key)
        if form is None:
            if len(self._forms) >= _FORMS:
                self._forms.clear()
            form = self._forms[key] = _form(it, self._target, self._signer.credentials.token)
        return form


def _form(it: Invocation, target: Target, token: str | None) -> _Form:
    path = f"{target.path}/endpoints/{quote(it.endpoint, safe=_UNRESERVED)}/async-invocations"
    headers = _token(token) | _fields(it)
    lines, names = canonical_headers(_lower({"Host": target.host, "X-Amz-Date": _SLOT} | headers))
    canonical = f"POST\n{quote(normalize_url_path(path), safe='/~')}\n\n{lines}\n{names}\n"
    dated = _common(target) | headers | {"X-Amz-Date": _SLOT}
    head = f"POST {path} HTTP/1.1\r\n{_lines(dated)}{_authorization(_SLOT, names)}"
    filename, location = it.filename is not None, it.input_location is not None
    return _Form(
        _pieces(canonical, True, filename, True, location), _pieces(head, filename, True, location, True, True)
    )


def _pieces(text: str, *slots: bool) -> tuple[str, ...]:
    """`text` cut at its slots. Behind a slot that it does not have stands nothing, as nothing will stand in it."""
    first, *parts = text.split(_SLOT)
    rest = iter(parts)
    return (first, *(next(rest) if there else "" for there in slots))


def _fields(it: Invocation) -> dict[str, str]:
    """The operation's own headers, with slots for what the jobs of a shard do not share."""
    given = {
        "Accept": it.accept,
        "Content-Type": it.content_type,
        "Custom-Attributes": it.custom_attributes,
        "Filename": None if it.filename is None else _SLOT,
        "Inference-Id": _SLOT,
        "InputLocation": None if it.input_location is None else _SLOT,
        "InvocationTimeoutSeconds": it.invocation_timeout_seconds,
        "RequestTTLSeconds": it.request_ttl_seconds,
        "S3OutputPathExtension": it.output_path_extension,
    }
    return {f"X-Amzn-SageMaker-{name}": str(value) for name, value in given.items() if value is not None}


# --- PutObject -------------------------------------------------------------------------------------------------------


_OF_ALL_PUTS = (
    "x-amz-expected-bucket-owner",
    "x-amz-server-side-encryption",
    "x-amz-server-side-encryption-aws-kms-key-id",
    "x-amz-tagging",
)


def key_path(key: str) -> str:
    """The end of a URL's path that a key makes."""
    return quote(key, safe=f"/{_UNRESERVED}")


class _PutForm(NamedTuple):
    """Texts with a `%(name)s` for each value that changes from request to request: `path`, `hash`, `stamp`, `length`, the names of
    an upload's headers; in the head also `credential`, `signature` and `id`.
    """

    canonical: str
    head: str


class PutRequests:
    """Builds requests that put objects into one bucket. `headers`, of one of the SDK's, may tell what all of them have.

    Keeps the signer and the forms of the credentials last used.
    """

    def __init__(self, target: Target, headers: Mapping[str, str]) -> None:
        self._target = target
        self._headers = {name: headers[name] for name in _OF_ALL_PUTS if name in headers}
        self._expect_continue = "expect" in headers
        self._signer = _unsigned(target)
        self._forms: dict[tuple[object, ...], _PutForm] = {}

    def build(self, key: str, content_type: str | None, upload: Upload, credentials: Keys, now: float) -> Request:
        """The request as it has to leave now. Its header values have to be writable."""
        if credentials is not self._signer.credentials:
            self._signer = Signer(credentials, self._target.region, self._target.service)
            self._forms.clear()
        moment, form = self._signer.at(now), self._form(content_type, upload)
        values = {
            **upload.headers,
            "path": f"{self._target.path}{key_path(key)}",
            "hash": upload.sha256,
            "stamp": moment.stamp,
            "length": upload.length,
            "credential": moment.credential,
            "id": next_id(),
        }
        values["signature"] = moment.signature((form.canonical % values).encode())
        return Request((form.head % values).encode(), upload.body, self._expect_continue)

    def _form(self, content_type: str | None, upload: Upload) -> _PutForm:
        key = (content_type, upload.length is None, *upload.headers)
        form = self._forms.get(key)
        if form is None:
            if len(self._forms) >= _FORMS:
                self._forms.clear()
            form = self._forms[key] = self._make_form(content_type, upload)
        return form

    def _make_form(self, content_type: str | None, upload: Upload) -> _PutForm:
        own = {name: f"%({name})s" for name in upload.headers}
        shared = self._headers | ({} if content_type is None else {"Content-Type": content_type})
        token = _token(self._signer.credentials.token)
        dated = {"X-Amz-Content-SHA256": "%(hash)s", "X-Amz-Date": "%(stamp)s"}
        signed = _plain(shared) | own | _plain(token) | dated
        lines, names = canonical_headers(_lower(_plain({"Host": self._target.host}) | signed))
        head = _lines(_plain(_common(self._target)) | signed | self._framing(upload))
        return _PutForm(
            f"PUT\n%(path)s\n\n{lines}\n{names}\n%(hash)s",
            f"PUT %(path)s HTTP/1.1\r\n{head}{_authorization('%(credential)s', names)}%(signature)s{_ENDING}%(id)s\r\n\r\n",
        )

    def _framing(self, upload: Upload) -> dict[str, str]:
        """What is not signed: it concerns the connection alone."""
        length = {"Transfer-Encoding": "chunked"} if upload.length is None else {"Content-Length": "%(length)s"}
        return length | ({"Expect": "100-continue"} if self._expect_continue else {})


def _plain(headers: Mapping[str, str]) -> dict[str, str]:
    """Values that stand in a text to be filled in as they are."""
    return {name: value.replace("%", "%%") for name, value in headers.items()}


# --- both ------------------------------------------------------------------------------------------------------------

_ENDING = "\r\namz-sdk-request: attempt=1\r\namz-sdk-invocation-id: "


def _unsigned(target: Target) -> Signer:
    """A signer that no credentials are those of."""
    return Signer(Keys("", "", None), target.region, target.service)


def _authorization(credential: str, names: str) -> str:
    return f"Authorization: {ALGORITHM} Credential={credential}, SignedHeaders={names}, Signature="


def _common(target: Target) -> dict[str, str]:
    return {"Host": target.host, "Accept-Encoding": "identity", "User-Agent": target.user_agent}


def _token(token: str | None) -> dict[str, str]:
    return {"X-Amz-Security-Token": token} if token else {}


def _lines(headers: Mapping[str, str]) -> str:
    return "".join([f"{name}: {value}\r\n" for name, value in headers.items()])


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}

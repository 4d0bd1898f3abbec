"""The control plane as far as `dispatcher check` asks it: DescribeEndpoint, DescribeEndpointConfig, and who is asking (STS).

Every endpoint has the configuration `<its name>-config`. Answers carry a Date, by the sandbox's own clock. Pure.
"""

from email.utils import formatdate
from typing import Any
from urllib.parse import parse_qs

import msgspec

from dispatcher.sandbox.blobs import Blob
from dispatcher.sandbox.messages import Reply, new_id
from dispatcher.sandbox.routing import Target
from dispatcher.sandbox.settings import EndpointSettings, Operation, Settings
from dispatcher.sandbox.signing import Refusal

OPERATIONS = frozenset({Operation.DESCRIBE, Operation.IDENTITY})

_CONFIG = "-config"
_JSON = ("Content-Type", "application/x-amz-json-1.1")
_XML = ("Content-Type", "text/xml")
_IDENTITY = (
    '<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult>'
    "<Arn>arn:aws:iam::{account}:user/sandbox</Arn><UserId>SANDBOX</UserId><Account>{account}</Account>"
    "</GetCallerIdentityResult><ResponseMetadata><RequestId>{id}</RequestId></ResponseMetadata></GetCallerIdentityResponse>"
)
_REFUSAL = (
    '<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type><Code>{code}</Code>'
    "<Message>{message}</Message></Error><RequestId>{id}</RequestId></ErrorResponse>"
)


def answer(settings: Settings, target: Target, body: Blob, now: float, why: Refusal | None) -> Reply:
    """Answers a request; `why` is what it is refused for already."""
    if target.operation is Operation.IDENTITY:
        return _identity(settings, body, now, why)
    outcome = why or _described(settings, target.name, body)
    if isinstance(outcome, Refusal):
        said = {"__type": outcome.code, "message": outcome.message}
        return _reply(outcome.status, _JSON, msgspec.json.encode(said), now, outcome.code)
    return _reply(200, _JSON, msgspec.json.encode(outcome), now)


def _identity(settings: Settings, body: Blob, now: float, why: Refusal | None) -> Reply:
    asked = parse_qs(body.read(0, body.size).decode("latin-1")).get("Action", [""])[0]
    if why is None and asked != "GetCallerIdentity":
        why = Refusal("InvalidAction", 400, f"Could not find operation {asked[:64]}")
    if why is not None:
        text = _REFUSAL.format(code=why.code, message=why.message, id=new_id())
        return _reply(why.status, _XML, text.encode(), now, why.code)
    return _reply(200, _XML, _IDENTITY.format(account=settings.account, id=new_id()).encode(), now)


def _described(settings: Settings, operation: str, body: Blob) -> dict[str, Any] | Refusal:
    try:
        asked = msgspec.json.decode(body.read(0, body.size), type=dict[str, Any])
    except msgspec.DecodeError:
        return Refusal("SerializationException", 400, "The body is not JSON.")
    match operation:
        case "DescribeEndpoint":
            name = str(asked.get("EndpointName"))
            kind, describe = "endpoint", _endpoint
        case "DescribeEndpointConfig":
            name = str(asked.get("EndpointConfigName")).removesuffix(_CONFIG)
            kind, describe = "endpoint configuration", _config
        case _:
            return Refusal("UnknownOperationException", 404, "The sandbox does not know this operation.")
    options = settings.endpoints.get(name)
    if options is None:
        return Refusal("ValidationException", 400, f'Could not find {kind} "{_arn(settings, name)}".')
    return describe(settings, name, options)


def _endpoint(settings: Settings, name: str, options: EndpointSettings) -> dict[str, Any]:
    failed = {"FailureReason": "the sandbox was told so"} if options.status == "Failed" else {}
    return {
        "EndpointName": name,
        "EndpointArn": _arn(settings, name),
        "EndpointConfigName": name + _CONFIG,
        "EndpointStatus": options.status,
        "CreationTime": 0,
        "LastModifiedTime": 0,
        **failed,
    }


def _config(settings: Settings, name: str, options: EndpointSettings) -> dict[str, Any]:
    output = {"S3OutputPath": options.output_path}
    if options.failure_path is not None:
        output["S3FailurePath"] = options.failure_path
    described = {
        "EndpointConfigName": name + _CONFIG,
        "EndpointConfigArn": _arn(settings, name + _CONFIG).replace(":endpoint/", ":endpoint-config/"),
        "ProductionVariants": [],
        "CreationTime": 0,
    }
    return described | ({"AsyncInferenceConfig": {"OutputConfig": output}} if options.asynchronous else {})


def _arn(settings: Settings, name: str) -> str:
    return f"arn:aws:sagemaker:{settings.region}:{settings.account}:endpoint/{name}"


def _reply(status: int, kind: tuple[str, str], body: bytes, now: float, code: str = "") -> Reply:
    headers = (kind, ("Date", formatdate(now, usegmt=True)), ("x-amzn-RequestId", new_id()))
    return Reply(status, headers, body, code=code)

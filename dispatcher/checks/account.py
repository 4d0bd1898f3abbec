"""Who asks AWS, with what, from where: SDK, client, credentials, region, URLs, and whether the clocks agree."""

from dispatcher.aws.probes import ANNOUNCED_REGIONS, Chain, Probes, Sdk, sdk
from dispatcher.checks.findings import Finding, Findings, failed, in_thread, ok, unknown, warning
from dispatcher.errors import UsageError
from dispatcher.model import FailureReason
from dispatcher.settings import Settings
from dispatcher.transports.choosing import Kind, Transports

SKEW_FAILS_SECONDS = 240.0
"""A signature is good for five minutes; a minute of that is left for what waits before it is sent."""
SKEW_WARNS_SECONDS = 30.0

_STATIC = {
    "env": "static keys in the environment",
    "shared-credentials-file": "static keys in a credentials file",
    "config-file": "static keys in the configuration file",
}
_UNFIT_ADVICE = (
    "it works at about ten times the CPU: take away what stands there (for a proxy, name AWS's hosts in NO_PROXY), or set "
    'client = "sdk" if it is meant so'
)
_REFUSED = {FailureReason.CREDENTIALS, FailureReason.ACCESS_DENIED}


async def sdk_installed() -> Findings:
    """The versions, and whether the SDK knows inline payloads."""
    return [sdk_finding(await in_thread(sdk))]


def sdk_finding(found: Sdk) -> Finding:
    """Whether this SDK will do."""
    text = f"aiobotocore {found.aiobotocore}, botocore {found.botocore}, aiohttp {found.aiohttp}"
    if found.knows_body:
        return ok("SDK", f"{text}; knows inline payloads")
    return failed("SDK", f"{text}: no inline payloads", "install botocore 1.43.29 or later, with its aiobotocore")


async def region(chain: Chain, settings: Settings) -> Findings:
    """The region, and whether inline payloads were announced for it."""
    try:
        name = await in_thread(chain.region)
    except UsageError as error:
        return [failed("region", str(error), "set AWS_REGION")]
    if name in ANNOUNCED_REGIONS:
        return [ok("region", f"{name}; inline payloads were announced for it")]
    text = f"{name}; inline payloads were not announced for it by June 2026"
    if settings.staging:
        return [ok("region", f"{text}; where they are refused, jobs travel by S3")]
    return [warning("region", text, "set --staging, so that jobs can travel by S3")]


async def credentials(chain: Chain) -> Findings:
    """Where the credentials come from."""
    try:
        method = await chain.credentials()
    except UsageError as error:
        return [failed("credentials", str(error), "see the SDK's documentation on credentials")]
    if method in _STATIC:
        advice = "where it runs for long, use a role: task role, IRSA, Pod Identity, instance profile"
        return [warning("credentials", _STATIC[method], advice)]
    return [ok("credentials", f"by {method}")]


async def identity(probes: Probes) -> Findings:
    """Who they belong to."""
    answer = await probes.identity()
    if answer.fault is None:
        return [ok("identity", f"{answer.data.get('Arn')} in account {answer.data.get('Account')}")]
    if answer.status and answer.fault.reason in _REFUSED:
        return [
            failed("identity", f"the credentials are refused ({answer.text})", "renew them, or name another profile")
        ]
    return [unknown("identity", f"STS did not say ({answer.text})")]


async def urls(probes: Probes) -> Findings:
    """The URLs in force, after all settings of the SDK."""
    return [ok("URLs", ", ".join(f"{name} {url}" for name, url in probes.opened.endpoints.items()))]


def client(kind: Kind, chosen: Transports) -> Findings:
    """What sends InvokeEndpointAsync, and PutObject where payloads are staged."""
    if kind == "sdk":
        return [ok("client", "the SDK, as set")]
    operations = ["InvokeEndpointAsync", *(["PutObject"] if chosen.stager is not None else [])]
    lean = [operation for operation in operations if operation not in chosen.unfit]
    found = [ok("client", f"lean: {' and '.join(lean)}")] if lean else []
    return found + [
        warning("client", f"the SDK sends {operation} itself: {why}", _UNFIT_ADVICE)
        for operation, why in chosen.unfit.items()
    ]


def clock(ahead_seconds: list[float]) -> Findings:
    """How far this machine's clock is off, by the Date of answers; the least of several, since a slow answer looks late."""
    if not ahead_seconds:
        return [unknown("clock", "no answer of AWS named a time")]
    off = min(ahead_seconds, key=abs)
    text = f"off by {abs(off):.0f} s ({'behind' if off > 0 else 'ahead of'} AWS)"
    if abs(off) >= SKEW_FAILS_SECONDS:
        return [failed("clock", text, "set it: requests that are signed five minutes off are refused")]
    if abs(off) >= SKEW_WARNS_SECONDS:
        return [warning("clock", text, "let it be kept by NTP: from five minutes on every request is refused")]
    return [ok("clock", f"agrees with AWS's to {max(1, round(abs(off)))} s")]

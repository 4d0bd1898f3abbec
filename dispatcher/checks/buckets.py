"""The buckets: may payloads be staged and deleted, may results be listed and read, and are they where the endpoint is."""

import secrets

from dispatcher.aws.locations import BadLocation, Location, parse_folder
from dispatcher.aws.probes import Answer, Probes, bucket_region
from dispatcher.checks.findings import Findings, failed, ok, unknown, warning
from dispatcher.interfaces import Fault, Stager
from dispatcher.model import FailureReason
from dispatcher.settings import Settings
from dispatcher.transports.staging import staging_folder

KEY = "dispatcher-check"


async def staging(probes: Probes, settings: Settings, here: Stager | None) -> Findings:
    """Puts a small object under the staging prefix, and deletes it. `here` is the dispatcher's own way to do so."""
    if settings.staging is None:
        return [unknown("staging", "none is set: every payload must fit inline")]
    if here is None:
        return [unknown("staging", "nothing was put: the client comes first")]
    key = f"{KEY}-{secrets.token_hex(8)}"
    staged = await here.stage(key, b"{}", "application/json")
    if isinstance(staged, Fault):
        return [
            failed("staging", f"cannot put an object under {settings.staging}: {_shown(staged)}", put_advice(staged))
        ]
    found = [ok("staging", f"objects can be put under {settings.staging}")]
    left = (await here.discard([key])).get(key)
    if left is not None:
        text = f"cannot delete {staged}: {_shown(left)}"
        advice = 'allow s3:DeleteObject there, or set staged_inputs = "lifecycle" with a rule in the bucket'
        verdict = failed if settings.staged_inputs == "delete" else warning
        found.append(verdict("staging", text, advice))
    return found + await _in_region(probes, staging_folder(settings.staging))


async def _in_region(probes: Probes, at: Location) -> Findings:
    region = probes.opened.region
    there = bucket_region(await probes.bucket(at.bucket))
    if there is None:
        return [unknown("staging", f"S3 did not say in which region {at.bucket} is")]
    if there == region:
        return [ok("staging", f"{at.bucket} is in {there}")]
    text = f"{at.bucket} is in {there}, the endpoints are in {region}"
    return [warning("staging", text, "use a bucket in the endpoints' region: it is faster, and transfer costs")]


async def outputs(probes: Probes, path: str) -> Findings:
    """Lists a folder that cannot exist where outputs will be, and looks for an object in it."""
    check, folder = "outputs", parse_folder(path)
    if isinstance(folder, BadLocation):
        return [unknown(check, f"{path} is no location in S3: {folder.why}")]
    prefix = folder.key.rstrip("/")
    at = Location(folder.bucket, f"{prefix}/{KEY}-{secrets.token_hex(8)}/".lstrip("/"))
    listed = await probes.list_one(at)
    looked = await probes.look(Location(at.bucket, f"{at.key}none.out"))
    return [*_listed(check, path, listed), *_looked(check, path, looked, may_list=listed.fault is None)]


def _listed(check: str, path: str, listed: Answer) -> Findings:
    if listed.fault is None:
        return [ok(check, f"{path} can be listed")]
    if listed.fault.reason is FailureReason.ACCESS_DENIED:
        advice = "allow s3:ListBucket on the bucket itself, with this prefix"
        text = f"{path} cannot be listed: every result costs requests of its own, and 403 must pass for 'not there yet'"
        return [warning(check, text, advice)]
    advice = "check the endpoint's configuration, and the bucket's region"
    return [failed(check, f"{path} cannot be listed: {listed.text}", advice)]


def _looked(check: str, path: str, looked: Answer, *, may_list: bool) -> Findings:
    if looked.status == 404:
        return [ok(check, f"objects in {path} can be read")]
    if looked.status == 403 and may_list:
        return [failed(check, f"objects in {path} cannot be read: {looked.text}", "allow s3:GetObject there")]
    text = f"whether objects in {path} can be read does not show: {looked.text}"
    return [unknown(check, text, "the --self-test reads one")]


def _shown(fault: Fault) -> str:
    return f"{fault.code}: {fault.message}"


def put_advice(fault: Fault) -> str:
    """What to do where an object cannot be put."""
    if fault.reason is FailureReason.CREDENTIALS:
        return "check the credentials"
    if fault.reason is FailureReason.ACCESS_DENIED:
        return "allow s3:PutObject there (with tags s3:PutObjectTagging too), and the bucket's key; check bucket_owner"
    return "check the bucket's name and region"

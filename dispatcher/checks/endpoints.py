"""The endpoints: there, in service, asynchronous, and where their results go. Asks the control plane where it may."""

from typing import Any

from msgspec import Struct

from dispatcher.aws.probes import ACTIONS, Answer, Probes
from dispatcher.checks.findings import Finding, Findings, failed, ok, unknown, warning
from dispatcher.model import FailureReason

_SERVING = {"InService", "Updating", "SystemUpdating", "RollingBack", "UpdateRollbackFailed"}
"""In all but the first a version of it serves while another is made or unmade."""
_ASK_IT = "the --self-test finds it out"


class Described(Struct, frozen=True):
    """What is known of an endpoint; None where nobody said."""

    name: str
    output_path: str | None = None
    failure_path: str | None = None


async def endpoint(probes: Probes, name: str) -> tuple[Findings, Described]:
    """Asks after one endpoint."""
    check = f"endpoint {name}"
    answer = await probes.endpoint(name)
    if answer.fault is not None:
        return [_undescribed(check, answer, "DescribeEndpoint")], Described(name)
    standing = _standing(check, answer.data)
    found = answer.data.get("AsyncInferenceConfig")
    if found is None:
        config = await probes.endpoint_config(str(answer.data.get("EndpointConfigName")))
        if config.fault is not None:
            return [standing, _undescribed(check, config, "DescribeEndpointConfig")], Described(name)
        found = config.data.get("AsyncInferenceConfig")
    if found is None:
        advice = "give its configuration an AsyncInferenceConfig, or name another endpoint"
        return [standing, failed(check, "is not asynchronous", advice)], Described(name)
    return _paths(check, name, standing, found.get("OutputConfig", {}))


def _paths(check: str, name: str, standing: Finding, output: dict[str, Any]) -> tuple[Findings, Described]:
    described = Described(name, output.get("S3OutputPath"), output.get("S3FailurePath"))
    found = [standing, ok(check, f"asynchronous, outputs go to {described.output_path or 'a default of the service'}")]
    if described.failure_path is None:
        advice = "set S3FailurePath in its configuration"
        text = "has no S3FailurePath: a job that its model fails is known only when its time is up, as expired"
        return [*found, warning(check, text, advice)], described
    return [*found, ok(check, f"failures go to {described.failure_path}")], described


def _standing(check: str, data: dict[str, Any]) -> Finding:
    status = str(data.get("EndpointStatus"))
    if status == "InService":
        return ok(check, "in service")
    if status in _SERVING:
        return ok(check, f"{status}: it serves meanwhile")
    why = f" ({data['FailureReason']})" if data.get("FailureReason") else ""
    return failed(check, f"{status}{why}", "wait until it is InService, or make it anew")


def _undescribed(check: str, answer: Answer, operation: str) -> Finding:
    fault = answer.fault
    assert fault is not None
    if fault.reason is FailureReason.ACCESS_DENIED:
        return unknown(check, f"no permission for {operation}", f"allow {ACTIONS[operation]}; {_ASK_IT} too")
    if fault.code.startswith("Validation"):
        return failed(check, f"is not there: {fault.message}", "check its name, the region and the account")
    return unknown(check, f"{operation} was not answered as hoped ({answer.text})", _ASK_IT)

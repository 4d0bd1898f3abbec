"""The self-test: real jobs to real endpoints, and a few requests that must be refused; what they show, and nothing left behind.

    a job inline, a job by S3     the paths a dispatcher takes, to their results, timed
    four bad requests             the texts that the service refuses with
    the first job once more       what a second submission of one InferenceId does
    clean up                      outputs and inputs, as far as the permissions go

Every wait is bounded. A bad request that is taken is a job like any other, and cleaned up after.
"""

import asyncio
import io
import os
from typing import Any

from msgspec import Struct

from dispatcher.aws.locations import Location, parse_location
from dispatcher.aws.probes import Probes
from dispatcher.checks import lessons
from dispatcher.checks.buckets import put_advice
from dispatcher.checks.endpoints import Described
from dispatcher.checks.findings import Finding, Findings, failed, ok, warning
from dispatcher.checks.lessons import Lesson
from dispatcher.completions.s3 import S3Completions
from dispatcher.identity import filename, inference_id, input_key, output_path_extension, run_id
from dispatcher.interfaces import Fault, Found, Invocation, Stager
from dispatcher.model import INLINE_MAX_BYTES, EndpointName, FailureReason, InferenceId, Receipt
from dispatcher.settings import Settings
from dispatcher.transports.choosing import Transports

LOOK_SECONDS = (0.1, 2.0)
"""The first and the longest pause between two looks for a result."""
FRONT_END_BYTES = 10_000_000


class SelfTest(Struct, frozen=True, kw_only=True):
    """The payload, and how long each result is waited for."""

    payload: bytes = b"{}"
    wait_seconds: float = 120.0


class _Ended(Struct, frozen=True):
    """A job whose result was waited for. `location` is where something was found; None: nothing in time."""

    receipt: Receipt
    location: str | None
    seconds: float
    trouble: Fault | None = None

    @property
    def succeeded(self) -> bool:
        return self.location == self.receipt.output_location


async def self_test(
    probes: Probes, chosen: Transports, settings: Settings, described: list[Described], test: SelfTest
) -> tuple[Findings, list[Lesson]]:
    """Tests every endpoint, all at once. `chosen` are the dispatcher's own transports: good jobs travel by them."""
    testers = [_Tester(probes, chosen, settings, one, test) for one in described]
    await asyncio.gather(*(tester.run() for tester in testers))
    return [finding for one in testers for finding in one.findings], [
        lesson for one in testers for lesson in one.lessons
    ]


class _Tester:
    """The test of one endpoint: what was found and learnt so far, and what it will have to clean up."""

    def __init__(
        self, probes: Probes, chosen: Transports, settings: Settings, described: Described, test: SelfTest
    ) -> None:
        self.findings: Findings = []
        self.lessons: list[Lesson] = []
        self._probes = probes
        self._settings = settings
        self._described = described
        self._test = test
        self._run = run_id(os.urandom(10))
        self._jobs = 0
        self._invoker = chosen.invoker
        self._stager = chosen.stager
        self._completions = S3Completions(probes.opened.s3, deadline=probes.deadline)
        self._written: list[str] = []  # locations that receipts named
        self._check = f"self-test {described.name}"

    async def run(self) -> None:
        """All of it. What broke is a finding."""
        try:
            first = self._invocation(self._next_id(), body=self._test.payload)
            ended = await self._inline(first)
            if self._stager is not None:
                await self._by_s3(self._stager)
            await self._bad_requests()
            if ended is not None and ended.succeeded:
                await self._again(first, ended)
        except Exception as error:  # a bug in the test shall neither hide the checks nor leave objects behind
            self._find(failed(self._check, f"broke: {type(error).__name__}: {error}", "report this"))
        finally:
            await self._clean_up()

    # --- good jobs ----------------------------------------------------------------------------------------------------

    async def _inline(self, invocation: Invocation) -> _Ended | None:
        began = _now()
        receipt = await self._invoker.invoke(invocation)
        if isinstance(receipt, Fault):
            self._find(self._refused("inline", receipt))
            return None
        took = _now() - began
        self._learn_of(receipt, invocation)
        ended = await self._result(receipt)
        self._find(await self._verdict("inline", ended, took))
        return ended

    async def _by_s3(self, here: Stager) -> None:
        job, began = self._next_id(), _now()
        location = await here.stage(input_key(job), self._test.payload, self._settings.content_type)
        if isinstance(location, Fault):
            text = f"by S3, PutObject: {location.code}: {location.message}"
            self._find(failed(self._check, text, put_advice(location)))
            return
        put = _now() - began
        try:
            receipt = await self._invoker.invoke(self._invocation(job, input_location=location))
            took = _now() - began
            if isinstance(receipt, Fault):
                self._find(self._refused("by S3", receipt))
                return
            ended = await self._result(receipt)
            self._find(await self._verdict(f"by S3 (PutObject {put * 1000:.0f} ms)", ended, took))
        finally:
            left = (await here.discard([input_key(job)])).get(input_key(job))
            if left is not None:
                self._find(
                    warning(self._check, f"left behind: {location} ({left.code})", "allow s3:DeleteObject there")
                )

    async def _result(self, receipt: Receipt, seconds: float | None = None) -> _Ended:
        """Looks for output and failure until one is there, or the time is up."""
        self._written += [one for one in (receipt.output_location, receipt.failure_location) if one]
        began, pause = _now(), LOOK_SECONDS[0]
        trouble: Fault | None = None
        while (passed := _now() - began) < (self._test.wait_seconds if seconds is None else seconds):
            for location in filter(None, (receipt.output_location, receipt.failure_location)):
                found = await self._completions.look(location)
                if isinstance(found, Found):
                    return _Ended(receipt, location, _now() - began)
                trouble = found or trouble
            await asyncio.sleep(pause)
            pause = min(2 * pause, LOOK_SECONDS[1])
        return _Ended(receipt, None, passed, trouble)

    async def _verdict(self, way: str, ended: _Ended, took: float) -> Finding:
        text = f"{way}: 202 after {took * 1000:.0f} ms"
        if ended.location is None:
            why = f" ({ended.trouble.code}: {ended.trouble.message})" if ended.trouble else ""
            advice = "an endpoint that scales from zero takes minutes: --self-test-wait SECONDS; see its logs"
            return failed(self._check, f"{text}, no result within {ended.seconds:.0f} s{why}", advice)
        text += f", result after {ended.seconds:.1f} s"
        if not ended.succeeded:
            advice = "send one it takes: --self-test-payload FILE"
            return warning(self._check, f"{text}: a failure, the model did not take the payload", advice)
        content = await self._completions.read(ended.location, 1)
        if isinstance(content, bytes):
            return ok(self._check, text)
        why = f"{content.code}: {content.message}" if content else "it is gone"
        return failed(self._check, f"{text}, which cannot be read ({why})", "allow s3:GetObject there")

    def _refused(self, way: str, fault: Fault) -> Finding:
        text = f"{way}: {fault.code}: {fault.message}"
        if fault.reason is FailureReason.INLINE_REFUSED and self._settings.staging is not None:
            return warning(self._check, text, "nothing: where inline is refused, jobs travel by S3")
        if fault.reason is FailureReason.CREDENTIALS:
            return failed(self._check, text, "check the credentials")
        if fault.reason is FailureReason.ACCESS_DENIED:
            return failed(self._check, text, "allow sagemaker:InvokeEndpointAsync on this endpoint, and its bucket")
        return failed(self._check, text, "check the endpoint, its region, and the payload")

    # --- what the documentation does not say --------------------------------------------------------------------------

    def _learn_of(self, receipt: Receipt, asked: Invocation) -> None:
        one = self._described
        made = lessons.composition(receipt, one.output_path, asked.output_path_extension, asked.filename)
        self._learn("how an OutputLocation is composed", made)
        promised = lessons.failure(receipt, one.failure_path, known=one.output_path is not None)
        self._learn("FailureLocation", promised)

    async def _bad_requests(self) -> None:
        somewhere = (self._settings.staging or self._described.output_path or "s3://no-such-bucket").rstrip("/")
        both = {"Body": b"{}", "InputLocation": f"{somewhere}/none"}
        for question, parameters in (
            (f"Body of {INLINE_MAX_BYTES + 1:,} bytes", {"Body": bytes(INLINE_MAX_BYTES + 1)}),
            (f"Body of {FRONT_END_BYTES:,} bytes", {"Body": io.BytesIO(bytes(FRONT_END_BYTES))}),
            ("Body and InputLocation", both),
            ("neither Body nor InputLocation", {}),
        ):
            await self._bad(question, parameters)

    async def _bad(self, question: str, parameters: dict[str, Any]) -> None:
        answer = await self._probes.invoke(
            EndpointName=self._described.name, InferenceId=self._next_id(), RequestTTLSeconds=60, **parameters
        )
        self._learn(question, lessons.refusal(answer))
        taken = (answer.data.get("OutputLocation"), answer.data.get("FailureLocation"))
        self._written += [location for location in taken if location]

    async def _again(self, invocation: Invocation, first: _Ended) -> None:
        """The first job once more. Its output is deleted before, so that one that appears shows a second run."""
        deleted = await self._delete(first.receipt.output_location)
        receipt = await self._invoker.invoke(invocation)
        if isinstance(receipt, Fault):
            self._learn("one InferenceId twice", f"refused, {receipt.code}: {receipt.message}")
            return
        same = receipt.output_location == first.receipt.output_location
        if same and not deleted:
            self._written.append(receipt.output_location)
            self._learn("one InferenceId twice", lessons.duplicate(same, None))
            return
        second = await self._result(receipt, min(self._test.wait_seconds, 5.0 + 3 * first.seconds))
        self._learn("one InferenceId twice", lessons.duplicate(same, second.location is not None))

    # --- inside -------------------------------------------------------------------------------------------------------

    async def _clean_up(self) -> None:
        left = [location for location in dict.fromkeys(self._written) if not await self._delete(location)]
        if left:
            text = f"left behind, if it is there: {', '.join(left)}"
            self._find(warning(self._check, text, "delete it: these credentials may not"))

    async def _delete(self, location: str) -> bool:
        at = parse_location(location)
        return isinstance(at, Location) and (await self._probes.delete(at)).fault is None

    def _next_id(self) -> InferenceId:
        self._jobs += 1
        return inference_id(self._run, self._jobs)

    def _invocation(
        self, id: InferenceId, *, body: bytes | None = None, input_location: str | None = None
    ) -> Invocation:
        chosen, wait = self._settings.chosen_keys, int(self._test.wait_seconds)
        return Invocation(
            endpoint=EndpointName(self._described.name),
            inference_id=id,
            filename=filename(id) if chosen else None,
            output_path_extension=output_path_extension("dispatcher-check", self._run, 0) if chosen else None,
            content_type=self._settings.content_type,
            accept=self._settings.accept,
            custom_attributes=None,
            request_ttl_seconds=min(max(60, wait), 21_600),
            invocation_timeout_seconds=min(max(1, wait), 3_600),
            body=body,
            input_location=input_location,
        )

    def _find(self, finding: Finding) -> None:
        self.findings.append(finding)

    def _learn(self, question: str, answer: str) -> None:
        self.lessons.append(Lesson(self._described.name, question, answer))


def _now() -> float:
    return asyncio.get_running_loop().time()

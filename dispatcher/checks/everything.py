"""Every check, in the order in which they are shown. They run side by side; none stops another.

What needs AWS waits for a region and credentials; where one is missing, that alone is the failure, and the rest was not
checked.
"""

import asyncio
from collections.abc import Awaitable
from contextlib import AsyncExitStack

from msgspec import Struct

from dispatcher.aws.deadlines import Deadline
from dispatcher.aws.probes import CONNECTIONS, Chain, Probes
from dispatcher.checks import account, buckets, disk, endpoints
from dispatcher.checks.endpoints import Described
from dispatcher.checks.findings import DISK_SECONDS, Findings, Verdict, bounded, failed, in_thread, unknown
from dispatcher.checks.lessons import Lesson
from dispatcher.checks.oddities import odd_settings
from dispatcher.checks.selftest import SelfTest, self_test
from dispatcher.errors import UsageError
from dispatcher.service import transports_of
from dispatcher.settings import Settings
from dispatcher.transports.choosing import Transports


class Report(Struct, frozen=True):
    """What all checks found, and what a self-test learnt of the service."""

    findings: Findings
    lessons: list[Lesson]

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return all(finding.verdict is not Verdict.FAILED for finding in self.findings)


async def check_everything(settings: Settings, test: SelfTest | None) -> Report:
    """Runs all checks, and with `test` the self-test."""
    local, (remote, lessons) = await asyncio.gather(_local(settings), _remote(settings, test))
    return Report([*odd_settings(settings), *remote, *local], lessons)


async def _local(settings: Settings) -> Findings:
    return await _together(
        bounded("SQLite", in_thread(disk.sqlite)),
        bounded("ledger", in_thread(disk.ledger, settings), DISK_SECONDS),
        bounded("spool", in_thread(disk.spool, settings), DISK_SECONDS),
        bounded("payloads", in_thread(disk.payloads, settings), DISK_SECONDS),
        bounded("listen", in_thread(disk.listen, settings)),
    )


async def _remote(settings: Settings, test: SelfTest | None) -> tuple[Findings, list[Lesson]]:
    chain = Chain(Deadline(base_seconds=settings.attempt_seconds))
    # One after the other: both read the same configuration, and the SDK's session is not made for two at once.
    found = await bounded("SDK", account.sdk_installed())
    found += await bounded("region", account.region(chain, settings))
    found += await bounded("credentials", account.credentials(chain))
    if any(finding.verdict is Verdict.FAILED for finding in found):
        return [*found, unknown("AWS", "nothing was asked of it: SDK, region and credentials come first")], []
    try:
        async with chain.open(settings.expect_continue) as probes, AsyncExitStack() as stack:
            asked, lessons = await _asked(stack, probes, settings, test)
            return found + asked, lessons
    except UsageError as error:
        return [*found, failed("AWS", str(error), "check the SDK's settings")], []


async def _asked(
    stack: AsyncExitStack, probes: Probes, settings: Settings, test: SelfTest | None
) -> tuple[Findings, list[Lesson]]:
    chosen: list[Transports] = []
    found = await bounded("client", _client(stack, probes, settings, chosen))
    described: list[Described] = []
    found += await _together(
        bounded("identity", account.identity(probes)),
        bounded("URLs", account.urls(probes)),
        bounded("endpoints", _endpoints(probes, settings, described)),
        bounded("staging", buckets.staging(probes, settings, chosen[0].stager if chosen else None)),
    )
    found += await bounded("outputs", _outputs(probes, described))
    found += account.clock(probes.ahead_seconds)
    if test is None:
        return found, []
    if not chosen:
        return [*found, unknown("self-test", "nothing was sent: the client comes first")], []
    tested, lessons = await self_test(probes, chosen[0], settings, described, test)
    return found + tested, lessons


async def _client(stack: AsyncExitStack, probes: Probes, settings: Settings, chosen: list[Transports]) -> Findings:
    """Opens what a dispatcher would hand payloads over with, and adds it to `chosen`; `stack` closes it."""
    try:
        made = transports_of(settings, probes.opened, connections=CONNECTIONS, deadline=probes.deadline)
    except UsageError as error:
        return [failed("client", str(error), "set another --staging")]
    chosen.append(await stack.enter_async_context(made))
    return account.client(settings.client, chosen[0])


async def _endpoints(probes: Probes, settings: Settings, described: list[Described]) -> Findings:
    """Adds to `described` what it learns."""
    names = sorted(settings.endpoints())
    if not names:
        return [failed("endpoint", "none is set, so no job could go anywhere", "set --endpoint or --allow-endpoint")]
    found: Findings = []
    for findings, one in await asyncio.gather(*(endpoints.endpoint(probes, name) for name in names)):
        found += findings
        described.append(one)
    return found


async def _outputs(probes: Probes, described: list[Described]) -> Findings:
    paths = {path for one in described for path in (one.output_path, one.failure_path) if path}
    if not paths:
        return [unknown("outputs", "where outputs go is not known", "allow DescribeEndpoint, or use --self-test")]
    return await _together(*(buckets.outputs(probes, path) for path in sorted(paths)))


async def _together(*work: Awaitable[Findings]) -> Findings:
    return [finding for findings in await asyncio.gather(*work) for finding in findings]

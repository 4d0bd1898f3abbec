"""`deploy/policy.json` allows what the code does, and nothing else."""

import json
import typing
from pathlib import Path

from dispatcher.aws import calls
from dispatcher.aws.probes import ACTIONS
from dispatcher.metrics import Operation

POLICY = Path(__file__).parents[2] / "deploy" / "policy.json"
OF_SETTINGS = {
    "OnlyWithTags": {"s3:PutObjectTagging"},
    "OnlyWithKmsKeys": {"kms:GenerateDataKey", "kms:Decrypt"},
}
"""What no operation is named after: staging_tags and `staged_inputs = "lifecycle"`; keys of buckets and outputs."""


def allowed() -> dict[str, set[str]]:
    """Actions by statement."""
    statements = json.loads(POLICY.read_text("utf-8"))["Statement"]
    assert all(statement["Effect"] == "Allow" for statement in statements)
    actions = {one["Sid"]: one["Action"] for one in statements}
    return {name: {given} if isinstance(given, str) else set(given) for name, given in actions.items()}


def test_what_a_dispatcher_at_work_asks_for_is_what_the_policy_allows() -> None:
    used = {ACTIONS[operation] for operation in Operation}
    always = {name: actions for name, actions in allowed().items() if not name.startswith("Only")}
    assert set().union(*always.values()) == used


def test_what_only_check_asks_for_stands_by_itself() -> None:
    at_work = {operation.value for operation in Operation}
    assert allowed()["OnlyForCheck"] == {action for name, action in ACTIONS.items() if name not in at_work}


def test_what_settings_may_need_stands_by_itself() -> None:
    assert {name: actions for name, actions in allowed().items() if name in OF_SETTINGS} == OF_SETTINGS


def test_every_operation_of_the_code_is_known() -> None:
    assert {operation.value for operation in Operation} == set(typing.get_args(calls.Operation)) <= set(ACTIONS)


def test_nothing_is_allowed_everywhere() -> None:
    text = POLICY.read_text("utf-8")
    assert '"Resource": "*"' not in text
    assert '"Action": "*"' not in text
    assert ":*" not in text

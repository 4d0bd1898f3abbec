"""Settings: one name in three places, the later place wins, and every problem is told at once."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from dispatcher.cli.options import settings_from
from dispatcher.errors import UsageError
from dispatcher.settings import Settings, describe, load, settings_table

NAMES = [item.name for item in msgspec.structs.fields(Settings)]


def test_nothing_given_is_the_defaults() -> None:
    assert load({}, {}) == Settings()


def test_a_flag_beats_the_environment_which_beats_the_file() -> None:
    toml = {"max_in_flight": 1, "max_faults": 1, "line_max_bytes": 2_000}
    environ = {"DISPATCHER_MAX_IN_FLIGHT": "2", "DISPATCHER_MAX_FAULTS": "2"}
    settings = load({"max_in_flight": 3}, environ, toml)
    assert (settings.max_in_flight, settings.max_faults, settings.line_max_bytes) == (3, 2, 2_000)


@pytest.mark.parametrize("absent", [None, ()])
def test_a_flag_that_was_not_given_hides_nothing(absent: Any) -> None:
    assert load({"endpoint": absent}, {"DISPATCHER_ENDPOINT": "model"}).endpoint == "model"


def test_an_empty_variable_counts_as_not_set() -> None:
    assert load({}, {"DISPATCHER_ENDPOINT": ""}, {"endpoint": "model"}).endpoint == "model"


def test_commas_separate_several_values_in_a_variable() -> None:
    assert load({}, {"DISPATCHER_ALLOW_ENDPOINT": "one, two,"}).allow_endpoint == ("one", "two")


def test_a_header_with_a_comma_stays_one_value() -> None:
    assert load({}, {"DISPATCHER_ACCEPT": "text/csv, text/plain"}).accept == "text/csv, text/plain"


@pytest.mark.parametrize(("text", "value"), [("true", True), ("1", True), ("false", False), ("0", False)])
def test_a_switch_is_said_in_words_or_digits(text: str, value: bool) -> None:
    assert load({}, {"DISPATCHER_CHOSEN_KEYS": text}).chosen_keys is value


def test_all_problems_are_named_in_one_message() -> None:
    toml = {"max_in_flight": 0, "endpont": "x"}
    environ = {"DISPATCHER_STAGING": "bucket/prefix", "DISPATCHER_MAX_FALTS": "1"}
    with pytest.raises(UsageError) as caught:
        load({"request_ttl_seconds": 59}, environ, toml)
    told = str(caught.value)
    for part in ("endpont", "DISPATCHER_MAX_FALTS", "max_in_flight", "DISPATCHER_STAGING", "--request-ttl-seconds"):
        assert part in told
    assert caught.value.exit_status == 2
    assert len(told.splitlines()) == 6


def test_a_problem_says_where_what_was_given_and_what_the_setting_means() -> None:
    with pytest.raises(UsageError, match=r"DISPATCHER_MAX_FAULTS: .*given: 'many'.*Refusals of one job"):
        load({}, {"DISPATCHER_MAX_FAULTS": "many"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("endpoint", "-model"),
        ("endpoint", "m" * 64),
        ("staging", "s3://"),
        ("staging", "https://bucket/prefix"),
        ("request_ttl_seconds", 21_601),
        ("invocation_timeout_seconds", 3_601),
        ("content_type", "text/plain\r\nX-Evil: 1"),
        ("content_type", ""),
        ("max_in_flight", 4_097),
        ("comparison_share", 1.1),
        ("staged_inputs", "burn"),
        ("bucket_owner", "12345"),
        ("staging_tags", ("novalue",)),
    ],
)
def test_a_value_that_the_service_or_the_dispatcher_cannot_take_is_refused(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=name):
        load({}, {}, {name: value})


def test_numbers_are_text_in_flags_and_variables_and_numbers_in_toml() -> None:
    assert load({"max_in_flight": "12"}, {"DISPATCHER_COLLECT": "1"}).max_in_flight == 12
    with pytest.raises(UsageError, match=r"max_in_flight in the settings file: expected a whole number, got a text"):
        load({}, {}, {"max_in_flight": "12"})


def test_a_listen_address_of_wrong_form_is_told_with_all_the_rest() -> None:
    with pytest.raises(UsageError, match=r"--max-in-flight(?s:.*)DISPATCHER_LISTEN"):
        load({"max_in_flight": "0"}, {"DISPATCHER_LISTEN": "9464"})


def test_a_settings_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    config = tmp_path / "dispatcher.toml"
    config.write_text('\ufeffendpoint = "model"\n', "utf-8")
    assert settings_from({"config": str(config)}).endpoint == "model"


def test_other_programs_variables_are_left_alone() -> None:
    assert load({}, {"AWS_REGION": "eu-central-1", "PATH": "/bin", "DISPATCH": "x"}) == Settings()


def test_nothing_travels_by_s3_for_comparison_where_nothing_can_be_staged() -> None:
    assert load({"comparison_share": 0.5}, {}).share() == 0.0
    assert load({"staging": "s3://bucket/in"}, {}).share() == 0.01
    assert load({"staging": "s3://bucket/in", "comparison_share": 0.0}, {}).share() == 0.0


def test_the_default_endpoint_is_one_of_those_allowed() -> None:
    assert load({"endpoint": "a", "allow_endpoint": ("b",)}, {}).endpoints() == {"a", "b"}
    assert load({}, {}).endpoints() == frozenset()


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_is_in_the_documented_table_in_all_its_spellings(name: str) -> None:
    flag, variable = "--" + name.replace("_", "-"), "DISPATCHER_" + name.upper()
    assert f"| `{name}` | `{flag}` | `{variable}` |" in settings_table()


def test_every_setting_says_what_it_means() -> None:
    assert [setting.name for setting in describe()] == NAMES
    assert all(setting.description.endswith(".") or "." in setting.description for setting in describe())


def test_a_window_whose_bounds_cross_is_told_beside_every_other_problem() -> None:
    with pytest.raises(UsageError, match="min_in_flight, 9, is above max_in_flight, 8") as caught:
        load({"min_in_flight": 9, "max_in_flight": 8, "max_faults": "many"}, {})
    assert "--max-faults" in str(caught.value)
    with pytest.raises(UsageError, match="min_in_flight, 65, is above max_in_flight, 64"):
        load({"min_in_flight": 65}, {})


def test_bounds_of_which_one_cannot_be_read_are_not_compared() -> None:
    with pytest.raises(UsageError) as caught:
        load({"min_in_flight": 99, "max_in_flight": "many"}, {})
    assert "is above" not in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"staging": "bucket/in"}, "--staging: it must be s3://BUCKET or s3://BUCKET/PREFIX"),
        ({"allow_endpoint": ("-a",)}, "--allow-endpoint: it must be letters, digits and, between them, hyphens"),
        ({"log_level": "loud"}, "--log-level: it must be one of debug, info, warning, error (given: 'loud')"),
        ({"log_format": "xml"}, "--log-format: it must be one of json, text (given: 'xml')"),
        ({"requests_per_second": "fast"}, "--requests-per-second: expected a number, got a text (given: 'fast')"),
        ({"max_faults": "0"}, "--max-faults: expected a whole number >= 1 (given: '0')"),
        ({"collect": "maybe"}, "--collect: expected true or false, got a text"),
    ],
)
def test_what_is_wrong_is_said_in_words(flags: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(flags, {})
    assert words in str(caught.value)


@pytest.mark.parametrize("name", [item.name for item in msgspec.structs.fields(Settings) if "pattern=" in repr(item)])
def test_every_form_that_is_asked_for_is_said(name: str) -> None:
    value = ("\n",) if isinstance(getattr(Settings(), name), tuple) else "\n"
    with pytest.raises(UsageError, match=f"{name}.*: it must be "):
        load({}, {}, {name: value})


OF_KUBERNETES = {
    "SERVICE_HOST": "10.0.0.1",
    "SERVICE_PORT": "9464",
    "SERVICE_PORT_METRICS": "9464",
    "PORT": "tcp://10.0.0.1:9464",
    "PORT_9464_TCP": "tcp://10.0.0.1:9464",
    "PORT_9464_TCP_PROTO": "tcp",
    "PORT_9464_TCP_PORT": "9464",
    "PORT_9464_TCP_ADDR": "fd00::1",
}


@pytest.mark.parametrize("service", ["DISPATCHER_", "DISPATCHER_METRICS_"])
def test_what_kubernetes_says_of_a_service_of_this_name_is_passed_over(service: str) -> None:
    assert load({}, {service + name: value for name, value in OF_KUBERNETES.items()}) == Settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("PORT", "9464"), ("PORT_METRICS", "tcp://10.0.0.1:9464"), ("PORT_9464_TCP_HOST", "10.0.0.1")),
        *(("PORTS", "tcp://10.0.0.1:9464"), ("SERVICE", "10.0.0.1"), ("SERVICE_HOST", "\n"), ("SERVICE_PORTS", "1")),
    ],
)
def test_what_only_resembles_it_is_unknown(name: str, value: str) -> None:
    with pytest.raises(UsageError, match=f"unknown variable DISPATCHER_{name}\\b"):
        load({}, {f"DISPATCHER_{name}": value})

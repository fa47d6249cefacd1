"""A broker is a URL: taken apart, never shown with its secrets, refused with what is right."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import Any

import pytest

from tidemill import BrokerUrlError, ConfigurationError
from tidemill.broker import BrokerUrl, Receipt, Status, connect, parse_url
from tidemill.clock import SystemClock


@pytest.mark.parametrize(
    ("url", "scheme", "path"),
    [
        ("memory:", "memory", ""),
        ("MEMORY:", "memory", ""),
        ("sqlite:///shop.db", "sqlite", "/shop.db"),
        ("sqlite:////var/lib/shop.db", "sqlite", "//var/lib/shop.db"),
        ("sqlite:///my%20shop%23.db", "sqlite", "/my%20shop%23.db"),
        ("nats://a:4222,b:4222", "nats", ""),
    ],
)
def test_a_url_is_taken_apart(url: str, scheme: str, path: str) -> None:
    assert parse_url(url) == BrokerUrl(scheme, url, path, "", {})


def test_parameters() -> None:
    parsed = parse_url("sqlite:///shop.db?namespace=staging-2&durable=&cache=5")
    assert parsed.namespace == "staging-2"
    assert parsed.options == {"durable": "", "cache": "5"}
    parsed.refuse_options("durable", "cache")
    with pytest.raises(BrokerUrlError, match=r"unknown parameter 'cache'\. This broker takes: namespace, durable\."):
        parsed.refuse_options("durable")


@pytest.mark.parametrize(
    "url",
    ["", "shop.db", "/var/lib/shop.db", ":", "://x", "1abc:x", "nats://[::1", "memory:?namespace", None, 5],
)
def test_what_is_no_url_is_answered_with_examples(url: Any) -> None:
    with pytest.raises(BrokerUrlError, match=r"is not a broker URL.* Examples: memory:, sqlite:///shop.db"):
        parse_url(url)


def test_a_hash_is_not_cut_off_in_silence() -> None:
    with pytest.raises(BrokerUrlError, match="written %23"):
        parse_url("sqlite:///shop#1.db")


@pytest.mark.parametrize("namespace", ["a b", "a/b", "ä", "-a", "a" * 61, "a.b"])
def test_namespaces_are_part_of_names(namespace: str) -> None:
    with pytest.raises(BrokerUrlError, match="use letters, digits, '-' and '_'"):
        parse_url(f"memory:?namespace={namespace}")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("nats://me:hunter2@host:4222", "nats://me:***@host:4222"),
        ("nats://me:hu%40nter2@host", "nats://me:***@host"),
        ("nats://me:hu@nter2@host", "nats://me:***@host"),
        ("nats://:hunter2@host", "nats://:***@host"),
        ("nats://hunter2@host", "nats://***@host"),
        ("redis://host/0?password=hunter2&x=1", "redis://host/0?password=***&x=1"),
        ("nats://host?x=1&auth_token=hunter2", "nats://host?x=1&auth_token=***"),
        ("nats://host", "nats://host"),
    ],
)
def test_secrets_are_not_shown(url: str, shown: str) -> None:
    assert parse_url(url).text == shown


@pytest.mark.parametrize("url", ["nats://me:hunter2@host#x", "nats://me:hunter2@[host", "//me:hunter2@host"])
def test_secrets_are_not_shown_in_errors(url: str) -> None:
    with pytest.raises(BrokerUrlError) as raised:
        parse_url(url)
    assert "hunter2" not in str(raised.value)


def installed(monkeypatch: pytest.MonkeyPatch, **adapters: str) -> None:
    points = [EntryPoint(name, value, "tidemill.brokers") for name, value in adapters.items()]
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: points if group == "tidemill.brokers" else [])


def recording_adapter(url: BrokerUrl, clock: object) -> Any:
    return url, clock


def test_an_adapter_is_found_by_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, mine=f"{__name__}:recording_adapter")
    clock = SystemClock()
    assert connect("mine://host?namespace=a", clock) == (parse_url("mine://host?namespace=a"), clock)


def test_an_unknown_scheme_lists_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, sqlite="x:y", memory="x:y")
    with pytest.raises(
        BrokerUrlError,
        match=r"sqlit:///a\.db: no broker is installed for 'sqlit'\. "
        r"Did you mean sqlite:\? Installed: memory, sqlite\.",
    ):
        connect("sqlit:///a.db", SystemClock())
    with pytest.raises(BrokerUrlError, match=r"for 'solace'\. Installed"):
        connect("solace://a", SystemClock())


def test_an_installation_without_adapters_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch)
    with pytest.raises(BrokerUrlError, match="None is: install Tidemill with pip"):
        connect("memory:", SystemClock())


@pytest.mark.parametrize("value", ["no_such_module_at_all:connect", f"{__name__}:no_such_function"])
def test_an_adapter_that_cannot_be_loaded_is_named(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    installed(monkeypatch, mine=value)
    with pytest.raises(ConfigurationError, match=r"its adapter '.*' cannot be loaded: .*no_such"):
        connect("mine:", SystemClock())


def test_the_built_in_adapters_are_registered() -> None:
    assert connect("memory:", SystemClock()).url.startswith("memory:")


def test_a_receipt_is_ok_if_the_message_is_stored() -> None:
    assert [Receipt(status).ok for status in Status] == [True, True, False, False]

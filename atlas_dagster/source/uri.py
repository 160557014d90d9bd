"""The address of a source system, taken from its config."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from atlas_dagster.config.masking import secret_values
from atlas_dagster.config.templates import variables

#: Fields of Airbyte's sources, the most specific first.
_ADDRESSES = (
    "url",
    "base_url",
    "api_url",
    "api_endpoint",
    "endpoint",
    "instance_url",
    "server_url",
    "site_url",
    "connection_string",
)
_HOSTS = ("host", "hostname", "server", "account")
_DATABASES = ("database", "db_name", "service_name", "dataset")
_BUCKETS = {"s3": "s3", "gcs": "gs"}
_DOMAIN = re.compile(r"[\w-]+(\.[\w-]+)+")


def find_source_uri(
    source: str, config: Mapping[str, Any], spec_schema: Mapping[str, Any]
) -> str | None:
    """Return the address of the system that ``source`` reads; None if no public field has it.

    It never contains a login, a query, a secret of the SPEC or the value of a variable.
    """
    fields = _public_fields(config, set(secret_values(config, spec_schema)))
    kind = source.removeprefix("source-")
    for name in (*_ADDRESSES, *_HOSTS):
        scheme, separator, rest = fields.get(name, "").partition("://")
        if separator:
            address = _remove_login(rest)
            return f"{scheme}://{address}" if address else None
    host = _remove_login(_first(fields, _HOSTS) or "")
    if host:
        host = f"[{host}]" if host.count(":") > 1 else host
        port, database = fields.get("port"), _first(fields, _DATABASES)
        return f"{kind}://{host}{f':{port}' if port else ''}{f'/{database}' if database else ''}"
    if kind in _BUCKETS and "bucket" in fields:
        return f"{_BUCKETS[kind]}://{fields['bucket']}"
    domain = fields.get("domain", "")
    return f"https://{domain}" if _DOMAIN.fullmatch(domain) else None


def _public_fields(config: Mapping[str, Any], secrets: set[str]) -> dict[str, str]:
    """Return the public fields: those at the top level, then those of the objects there."""
    objects = [value for value in config.values() if isinstance(value, Mapping)]
    public: dict[str, str] = {}
    for name, value in [*config.items(), *(item for each in objects for item in each.items())]:
        text = str(value).strip() if isinstance(value, str | int) else ""
        if text and not isinstance(value, bool) and text not in secrets and not variables(text):
            public.setdefault(name, text)
    return public


def _first(fields: Mapping[str, str], names: Sequence[str]) -> str | None:
    return next((fields[name] for name in names if name in fields), None)


def _remove_login(address: str) -> str:
    """Return ``address`` from the host on, without a query; empty if it is ambiguous."""
    login, _, address = address.rpartition("@")
    if any(character in login for character in "/?#;"):
        return ""
    return re.split("[?#;]", address, maxsplit=1)[0].rstrip("/")

"""
The contract for those who do not read Python: JSON Schema and AsyncAPI, made from the types.

Pure; `schemas/json` holds what it makes (`make schemas`), and a test keeps that current. What
no schema can say stands in descriptions: bounds in bytes, and which key belongs to an event.
"""

from datetime import UTC, datetime
from typing import Any

import msgspec

from . import cloud_events
from .codec import encode_event, key_of
from .dead_letter import (
    EXPLANATIONS,
    FACT_NAMES,
    PREFIX,
    DeadLetterEnvelope,
    Facts,
    Origin,
)
from .events import (
    DocumentDeleted,
    DocumentUpserted,
    JsonEvent,
    ScopeDeleted,
)

CONTRACT_VERSION = "1.0.0"
"""Grows as semantic versioning says; workers read every 1.x."""

EXAMPLES: dict[str, JsonEvent] = {
    "upsert": DocumentUpserted(
        tenant="acme",
        collection="handbook",
        id="holidays/2026",
        version=1767225600000000,
        text="# Holidays\n\nThe office is closed on the first of January.",
        content_type="text/markdown",
        metadata={"language": "en", "tags": ["hr", "calendar"]},
        occurred_at=datetime(2026, 1, 1, tzinfo=UTC),
    ),
    "delete": DocumentDeleted(
        tenant="acme", collection="handbook", id="holidays/2026", version=1767225600000001
    ),
    "delete_scope": ScopeDeleted(
        tenant="acme", collection="handbook", version=1767225600000002
    ),
}

Schema = dict[str, Any]

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_BINDING_VERSION = "0.5.0"
_PART = "(?:[A-Za-z0-9_.~-]|%[0-9A-F]{2})+"
_DOCUMENT_KEY: Schema = {
    "type": "string",
    "pattern": f"^{_PART}/{_PART}/{_PART}$",
    "description": "tenant/collection/id, each part UTF-8 and percent-encoded (RFC 3986).",
}
_SCOPE_KEY: Schema = {
    "type": "string",
    "pattern": f"^{_PART}(?:/{_PART})?$",
    "description": "tenant, or tenant/collection; each part UTF-8 and percent-encoded.",
}
_TRACE_HEADERS: Schema = {
    "traceparent": {
        "type": "string",
        "pattern": "^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$",
        "description": "W3C Trace Context; carried to the provider call and the commit.",
    }
}
_CLOUD_EVENT_HEADERS: Schema = {
    "ce_specversion": {"type": "string", "const": "1.0"},
    "ce_type": {
        "type": "string",
        "enum": [
            f"{prefix}{tag}" for prefix in (cloud_events.TYPE_PREFIX, "") for tag in EXAMPLES
        ],
        "description": "Replaces the field `type` of the payload.",
    },
    "ce_id": {"type": "string"},
    "ce_source": {"type": "string"},
    "ce_time": {
        "type": "string",
        "format": "date-time",
        "description": "Taken as `occurred_at` where the payload has none.",
    },
}


def json_schema() -> Schema:
    """Return the JSON Schema of the value of a record."""
    schema = msgspec.json.schema(JsonEvent)
    title = {"$schema": _DIALECT, "$id": "urn:embedfleet:event:1", "title": "Event"}
    return title | schema | {"examples": [_payload(event) for event in EXAMPLES.values()]}


def dead_letter_headers_schema() -> Schema:
    """Return the JSON Schema of the headers that a dead letter has beside the original ones."""
    properties, required = _envelope_headers()
    return {
        "$schema": _DIALECT,
        "$id": "urn:embedfleet:dead-letter-headers:1",
        "title": "DeadLetterHeaders",
        "description": "All values are UTF-8. The original headers stand before them, "
        f"unchanged; the last header {PREFIX}reason divides the two.",
        "type": "object",
        "properties": properties,
        "required": required,
    }


def async_api() -> Schema:
    """Return the AsyncAPI 3 document: both topics, as the workers see them."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "embedfleet",
            "version": CONTRACT_VERSION,
            "description": "Document events in, dead letters out. Records of one document have "
            "one key, so they must be partitioned by it with the partitioner of Kafka's Java "
            "client (librdkafka: partitioner=murmur2_random).",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": {
            "documents": _channel("documents", "Document events.", _message_names()),
            "deadLetters": _channel(
                "documents.dead-letters", "Records that cannot pass.", ["deadLetter"]
            ),
        },
        "operations": {
            "receiveDocuments": _operation("receive", "documents"),
            "sendDeadLetters": _operation("send", "deadLetters"),
        },
        "components": {
            "schemas": _event_schemas(),
            "messages": _messages(),
            "messageTraits": {
                "traced": {"headers": _headers(_TRACE_HEADERS)},
                "cloudEvent": {"headers": _headers(_CLOUD_EVENT_HEADERS)},
            },
        },
    }


def _payload(event: JsonEvent) -> Any:
    return msgspec.json.decode(encode_event(event))


def _headers(properties: Schema) -> Schema:
    return {"type": "object", "properties": properties}


def _envelope_headers() -> tuple[Schema, list[str]]:
    schema = msgspec.json.schema(DeadLetterEnvelope)["$defs"]["DeadLetterEnvelope"]
    properties = {
        name: _as_text(field)
        for name, field in schema["properties"].items()
        if name not in {f"{PREFIX}facts", f"{PREFIX}origin"}
    }
    codes = [{"const": str(code), "description": text} for code, text in EXPLANATIONS.items()]
    properties[f"{PREFIX}reason"]["anyOf"] = [
        *codes,
        {"type": "string", "description": "A code of a newer worker."},
    ]
    for header, kind in zip(FACT_NAMES, Facts.__annotations__.values(), strict=True):
        properties[header] = _as_text(msgspec.json.schema(kind))
    for name, kind in Origin.__annotations__.items():
        header = f"{PREFIX}origin.{name.removesuffix('_ms')}"
        properties[header] = _as_text(msgspec.json.schema(kind)) | {
            "description": "Only after a replay: where the record first stood."
        }
    return properties, schema["required"]


def _as_text(schema: Schema) -> Schema:
    """Return the schema of a value as it stands in a header; one that is None has none."""
    text: Schema = {"type": "string"}
    kind, *_ = schema.get("anyOf", [schema])
    if kind["type"] == "integer":
        text["pattern"] = "^-?[0-9]{1,19}$"
    if "description" in schema:
        text["description"] = schema["description"]
    return text


def _event_schemas() -> Schema:
    types = (DocumentUpserted, DocumentDeleted, ScopeDeleted)
    _, schemas = msgspec.json.schema_components(
        types, ref_template="#/components/schemas/{name}"
    )
    return dict(schemas)


def _message_names() -> list[str]:
    return [*EXAMPLES, "tombstone"]


def _messages() -> Schema:
    messages = {tag: _event_message(tag, event) for tag, event in EXAMPLES.items()}
    properties, required = _envelope_headers()
    messages["tombstone"] = {
        "title": "Tombstone",
        "summary": "A null value: a delete without a version. It beats every record before it "
        "in its partition, whatever the version; prefer a delete with a version.",
        "payload": {"type": "null"},
        "bindings": _key_binding(_DOCUMENT_KEY),
        "traits": [{"$ref": "#/components/messageTraits/traced"}],
    }
    messages["deadLetter"] = {
        "title": "Dead letter",
        "summary": "A record that cannot pass: key, value and headers as they were, and why.",
        "headers": _headers(properties) | {"required": required},
        "payload": {"description": "The original value, byte for byte; perhaps no JSON."},
        "bindings": _key_binding({"description": "The original key; perhaps none."}),
        "traits": [{"$ref": "#/components/messageTraits/traced"}],
    }
    return messages


def _event_message(tag: str, event: JsonEvent) -> Schema:
    name = type(event).__name__
    key = _SCOPE_KEY if isinstance(event, ScopeDeleted) else _DOCUMENT_KEY
    return {
        "name": tag,
        "title": name,
        "payload": {"$ref": f"#/components/schemas/{name}"},
        "bindings": _key_binding(key | {"examples": [key_of(event).decode()]}),
        "traits": [
            {"$ref": "#/components/messageTraits/traced"},
            {"$ref": "#/components/messageTraits/cloudEvent"},
        ],
        "examples": [{"name": tag, "payload": _payload(event)}],
    }


def _key_binding(key: Schema) -> Schema:
    return {"kafka": {"key": key, "bindingVersion": _BINDING_VERSION}}


def _channel(address: str, description: str, messages: list[str]) -> Schema:
    return {
        "address": address,
        "description": f"{description} The name is the default; workers are told theirs.",
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
        "bindings": {"kafka": {"topic": address, "bindingVersion": _BINDING_VERSION}},
    }


def _operation(action: str, channel: str) -> Schema:
    return {"action": action, "channel": {"$ref": f"#/channels/{channel}"}}

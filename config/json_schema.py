"""The JSON Schema of the configuration file, for editors: ``whalebridge schema config``."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from config.fields import format_duration
from config.settings import Settings
from config.sinks import BUILT_IN, ID_PATTERN, MAX_ID_LENGTH, BaseSinkSettings, model_of, plugins

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_URL = {"type": "string", "pattern": "^[^:]+:", "description": "A sink's URL, such as kafka://HOST:PORT/TOPIC."}


def json_schema() -> dict[str, Any]:
    """Return the schema, including the sinks of installed plugins."""
    sinks = [*BUILT_IN.values(), *_plugins()]
    models: list[type[BaseModel]] = [Settings, *sinks]
    references, document = models_json_schema([(model, "validation") for model in models], schema_generator=_Generator)
    definitions: dict[str, Any] = document["$defs"]
    names = [references[model, "validation"]["$ref"].rpartition("/")[2] for model in models]
    root = definitions.pop(names[0])
    definitions.pop(BaseSinkSettings.__name__)  # stands for plugins that are not installed
    for name in names[1:]:
        definitions[name]["required"] = ["type", *definitions[name].get("required", [])]
    either = [_URL, *({"$ref": f"#/$defs/{name}"} for name in names[1:])]
    root["properties"]["sinks"] |= {
        "default": {"stdout": {"type": "stdout"}},
        "minProperties": 1,
        "propertyNames": {"pattern": f"^{ID_PATTERN}$", "maxLength": MAX_ID_LENGTH},
        "additionalProperties": {"anyOf": either},
    }
    for group in (root, *definitions.values()):
        for field in group["properties"].values():
            _explain(field)
    return {"$schema": DIALECT, **root, "$defs": definitions}


class _Generator(GenerateJsonSchema):
    """Encodes defaults as users write them in settings."""

    def encode_default(self, dft: Any) -> Any:
        return format_duration(dft) if isinstance(dft, timedelta) else super().encode_default(dft)

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002 (the signature is pydantic's)
        return False


def _plugins() -> list[type[BaseSinkSettings]]:
    models = []
    for name in plugins.names():
        try:
            models.append(model_of(name))
        except ValueError:  # reported where such a sink is configured
            continue
    return models


def _explain(field: dict[str, Any]) -> None:
    """Add unit and reason to the description, which editors show."""
    if "$ref" in field:
        field.pop("default", None)  # each setting of the group has its own default
        return
    unit = f"Unit: {field['unit']}." if "unit" in field else ""
    reason = f"Reason: {field['reason']}" if "reason" in field else ""
    field["description"] = "\n\n".join(part for part in (field["description"], unit, reason) if part)

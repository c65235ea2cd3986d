"""The OpenAPI description of the routes: a pure function of the limits."""

from __future__ import annotations

from typing import Any

from bintally import __version__
from serving.answer import SURE
from serving.config import Limits
from serving.http.request import MAX_ID, MAX_QUANTITY

__all__ = ["describe_api"]


def describe_api(limits: Limits) -> dict[str, Any]:
    """OpenAPI 3.1."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Bintally",
            "version": __version__,
            "description": "Counts the items in photos of warehouse bins.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{}, {"bearer": []}],
        "paths": {
            "/ping": {"get": _ping()},
            "/invocations": {"post": _invocations(limits)},
            "/metrics": {
                "get": {
                    "summary": "Numbers for Prometheus",
                    "responses": {
                        "200": {
                            "description": "Prometheus' text format",
                            "content": {"text/plain": {"schema": {"type": "string"}}},
                        },
                        "401": _refusal("The token is missing or wrong"),
                    },
                }
            },
        },
        "components": {
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
            "schemas": SCHEMAS,
        },
    }


def _ping() -> dict[str, Any]:
    return {
        "summary": "Is it ready?",
        "description": "An answer at all says that the server is alive, 200 that it is ready.",
        "security": [],
        "responses": {
            "200": {
                "description": "Ready",
                "content": _json({"$ref": "#/components/schemas/State"}),
            },
            "503": {
                "description": "Alive, but starting, draining or without a replica",
                "content": _json({"$ref": "#/components/schemas/State"}),
            },
        },
    }


def _invocations(limits: Limits) -> dict[str, Any]:
    photo = {"schema": {"type": "string", "format": "binary", "description": "A JPEG"}}
    return {
        "summary": "Count the items in photos",
        "description": (
            f"Up to {limits.photos} photos and {limits.body_bytes:,} bytes a request, "
            f"{limits.photo_pixels:,} pixels a photo. A photo sent by itself is answered by "
            "itself, a batch in the order of its photos. A bad photo of a batch has an error for "
            "its answer, and the others are counted."
        ),
        "parameters": [
            {
                "name": "expected_quantity",
                "in": "query",
                "description": "To compare with, for a photo that is sent by itself.",
                "schema": _QUANTITY,
            },
            {
                "name": "X-Amzn-SageMaker-Custom-Attributes",
                "in": "header",
                "description": "expected_quantity=3, where a query is not passed on.",
                "schema": {"type": "string"},
            },
        ],
        "requestBody": {
            "required": True,
            "content": {
                "image/jpeg": photo,
                "application/x-image": photo,
                "application/json": {
                    "schema": {
                        "oneOf": [
                            {"$ref": "#/components/schemas/Photo"},
                            {
                                "type": "object",
                                "required": ["instances"],
                                "properties": {
                                    "instances": {
                                        "type": "array",
                                        "minItems": 1,
                                        "maxItems": limits.photos,
                                        "items": {"$ref": "#/components/schemas/Photo"},
                                    }
                                },
                            },
                        ]
                    }
                },
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "properties": {
                            "photo": {
                                "type": "array",
                                "items": {"type": "string", "format": "binary"},
                                "description": "JPEGs, in files of any field name",
                            },
                            "expected_quantity": {
                                "type": "array",
                                "items": {"type": "string"},
                                "description": "None, one for all photos, or one for each in order "
                                "(an empty one for none)",
                            },
                        },
                    }
                },
            },
        },
        "responses": {
            "200": {
                "description": "Counted",
                "content": _json(
                    {
                        "oneOf": [
                            {"$ref": "#/components/schemas/Answer"},
                            {"$ref": "#/components/schemas/Answers"},
                        ]
                    }
                ),
            },
            "400": _refusal("Not what its type says: a damaged photo, bad JSON, a bad form"),
            "401": _refusal("The token is missing or wrong"),
            "408": _refusal(f"Not sent within {limits.receive_s:g} s"),
            "413": _refusal("More bytes, pixels or photos than may be"),
            "415": _refusal("A type, or a photo, that is not served"),
            "429": _refusal("Too many photos are waiting", retry=True),
            "503": _refusal("Starting, or not counted in time", retry=True),
        },
    }


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _refusal(description: str, *, retry: bool = False) -> dict[str, Any]:
    response: dict[str, Any] = {
        "description": description,
        "content": _json({"$ref": "#/components/schemas/Refused"}),
    }
    if retry:
        response["headers"] = {
            "Retry-After": {"schema": {"type": "integer"}, "description": "Seconds"}
        }
    return response


_QUANTITY = {"type": "integer", "minimum": 0, "maximum": MAX_QUANTITY}
_SHARE = {"type": "number", "minimum": 0, "maximum": 1}

_ERROR = {
    "type": "object",
    "required": ["status", "reason"],
    "properties": {"status": {"type": "integer"}, "reason": {"type": "string"}},
}

_ANSWER = {
    "count": {"type": "integer", "description": "The number of items: a count, not a class index"},
    "confidence": {**_SHARE, "description": "The model's probability of this count"},
    "expected": {"type": "number", "description": "The mean of the counts' probabilities"},
    "probabilities": {"type": "object", "additionalProperties": _SHARE},
    "model": {"type": "string", "description": "sha256 of the checkpoint"},
    "expected_quantity": _QUANTITY,
    "matches": {
        "type": ["boolean", "null"],
        "description": "Whether the count is the expected quantity; null where the model does not "
        "know that quantity",
    },
    "verdict": {
        "enum": ["match", "mismatch", "unsure"],
        "description": f"unsure where it would be right with a probability below {SURE}",
    },
    "verdict_confidence": {
        "type": ["number", "null"],
        "description": "The model's probability that `matches` is right",
    },
}

SCHEMAS: dict[str, Any] = {
    "Photo": {
        "type": "object",
        "required": ["image"],
        "additionalProperties": False,
        "properties": {
            "image": {"type": "string", "format": "byte", "description": "A JPEG in Base64"},
            "id": {"type": "string", "maxLength": MAX_ID, "description": "Sent back"},
            "expected_quantity": _QUANTITY,
        },
    },
    "Answer": {
        "type": "object",
        "required": [*list(_ANSWER)[:5], "milliseconds"],
        "properties": {**_ANSWER, "milliseconds": {"type": "number"}},
    },
    "Answers": {
        "type": "object",
        "required": ["predictions", "milliseconds"],
        "properties": {
            "predictions": {
                "type": "array",
                "items": {
                    "oneOf": [
                        {
                            "type": "object",
                            "required": list(_ANSWER)[:5],
                            "properties": {"id": {"type": "string"}, **_ANSWER},
                        },
                        {
                            "type": "object",
                            "required": ["error"],
                            "properties": {"id": {"type": "string"}, "error": _ERROR},
                        },
                    ]
                },
            },
            "milliseconds": {"type": "number"},
        },
    },
    "Refused": {"type": "object", "required": ["error"], "properties": {"error": _ERROR}},
    "State": {
        "type": "object",
        "properties": {
            "status": {"enum": ["starting", "ready", "draining", "no replica"]},
            "replicas": {"type": "integer"},
            "model": {"type": ["string", "null"]},
        },
    },
}

"""Tool schemas of the kinds that clients send, each with arguments that fit it.

The kinds are those of JSONSchemaBench: generated function signatures, Kubernetes, GitHub's configuration files, MCP
servers, and what pydantic and zod write.
"""

from __future__ import annotations

from typing import Any, Final

TEXT: Final = {"type": "string"}

SHAPES: Final[dict[str, tuple[dict[str, Any], dict[str, Any]]]] = {
    "no schema": ({}, {"a": 1}),
    "no properties": ({"type": "object", "properties": {}}, {}),
    "a function's signature": (
        {"type": "object", "properties": {"city": TEXT, "days": {"type": "integer"}}, "required": ["city"]},
        {"city": "北京", "days": 3},
    ),
    "annotations": (
        {"title": "T", "description": "D", "examples": [{}], "deprecated": True, "readOnly": True, "x-order": 3,
         "properties": {"a": {**TEXT, "default": None, "nullable": True, "discriminator": {"propertyName": "k"}}}},
        {"a": "x"},
    ),
    "pydantic's optional": (
        {"$defs": {"Unit": {"enum": ["c", "f"], "title": "Unit", "type": "string"}},
         "properties": {"unit": {"$ref": "#/$defs/Unit", "default": "c"},
                        "days": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None}}},
        {"unit": "f", "days": None},
    ),
    "pydantic's union with a tag": (
        {"$defs": {"Cat": {"properties": {"kind": {"const": "cat"}, "lives": {"type": "integer"}}, "type": "object"},
                   "Dog": {"properties": {"kind": {"const": "dog"}}, "type": "object"}},
         "properties": {"pet": {"oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}],
                                "discriminator": {"propertyName": "kind", "mapping": {"cat": "#/$defs/Cat"}}}}},
        {"pet": {"kind": "dog"}},
    ),
    "zod's object": (
        {"$schema": "http://json-schema.org/draft-07/schema#", "type": "object", "additionalProperties": False,
         "properties": {"url": {**TEXT, "format": "uri"}, "tags": {"type": "array", "items": TEXT, "minItems": 1}},
         "required": ["url"]},
        {"url": "https://example.org/a", "tags": ["x"]},
    ),
    "zod's intersection": (
        {"allOf": [{"type": "object", "properties": {"a": TEXT}, "required": ["a"]},
                   {"type": "object", "properties": {"b": {"type": "boolean"}}, "required": ["b"]}],
         "unevaluatedProperties": False},
        {"a": "x", "b": True},
    ),
    "zod's record": ({"type": "object", "additionalProperties": {"type": "number"}}, {"a": 1.5}),
    "keywords that are null": (
        {"type": "object", "properties": {"a": {**TEXT, "minLength": None, "pattern": None, "format": None}},
         "required": None},
        {"a": "x"},
    ),
    "the formats of OpenAPI": (
        {"properties": {"id": {"type": "integer", "format": "int64"}, "raw": {**TEXT, "format": "binary"}}},
        {"id": 5, "raw": "x"},
    ),
    "formats that are not enforced": (
        {"properties": {"a": {**TEXT, "format": "idn-email"}, "b": {**TEXT, "format": "uri-template"},
                        "c": {**TEXT, "format": "regex"}}},
        {"a": "x@y.z", "b": "/{a}", "c": ".*"},
    ),
    "a format and a pattern with lookahead": (
        {"properties": {"host": {**TEXT, "format": "hostname", "pattern": "^(?!localhost).+$"}}}, {"host": "a.b"},
    ),
    "a password's pattern": ({"properties": {"p": {**TEXT, "pattern": r"^(?=.*\d)(?=.*[a-z]).{8,}$"}}}, {"p": "a"}),
    "a word boundary": ({"properties": {"p": {**TEXT, "pattern": r"\bfix\b"}}}, {"p": "a fix"}),
    "a backreference": ({"properties": {"p": {**TEXT, "pattern": r"(a)\1"}}}, {"p": "aa"}),
    "a Unicode class": ({"properties": {"p": {**TEXT, "pattern": r"^\p{Lu}\p{L}*$"}}}, {"p": "Zoe"}),
    "a pattern that is no regular expression": ({"properties": {"p": {**TEXT, "pattern": "["}}}, {"p": "x"}),
    "unique items": (
        {"properties": {"a": {"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True}}}, {"a": [1, 2]},
    ),
    "contains": (
        {"properties": {"a": {"type": "array", "contains": {"const": 1}, "minContains": 1, "maxContains": 2}}},
        {"a": [1]},
    ),
    "not": ({"properties": {"a": {"not": {"type": "null"}}}, "not": {"required": ["b"]}}, {"a": 1}),
    "if, then and else": (
        {"properties": {"a": {"type": "integer"}}, "if": {"properties": {"a": {"const": 1}}},
         "then": {"required": ["b"]}, "else": {"required": ["c"]}},
        {"a": 1, "b": 2},
    ),
    "dependencies of draft 7": (
        {"properties": {"a": TEXT, "b": TEXT}, "dependencies": {"a": ["b"], "b": {"required": ["a"]}}},
        {"a": "x", "b": "y"},
    ),
    "dependent required and schemas": (
        {"properties": {"a": TEXT}, "dependentRequired": {"a": ["b"]}, "dependentSchemas": {"a": {"required": ["b"]}}},
        {"a": "x", "b": 1},
    ),
    "pattern properties": (
        {"type": "object", "patternProperties": {"^x-": TEXT}, "additionalProperties": False}, {"x-a": "y"},
    ),
    "pattern properties with lookahead": (
        {"type": "object", "patternProperties": {"^(?!x-).*$": TEXT}}, {"a": "y"},
    ),
    "property names": (
        {"type": "object", "propertyNames": {"pattern": "^[a-z]+$", "maxLength": 8}, "minProperties": 1}, {"a": 1},
    ),
    "a number of properties": (
        {"properties": {"a": TEXT, "b": TEXT}, "minProperties": 1, "maxProperties": 1}, {"a": "x"},
    ),
    "multiples": (
        {"properties": {"price": {"type": "number", "multipleOf": 0.01}, "n": {"type": "integer", "multipleOf": 5}}},
        {"price": 1.25, "n": 15},
    ),
    "ranges": (
        {"properties": {"a": {"type": "number", "exclusiveMinimum": 0, "maximum": 1e30},
                        "b": {"type": "integer", "minimum": -5, "maximum": 9}}},
        {"a": 2.5, "b": -3},
    ),
    "the ranges of draft 4": (
        {"$schema": "http://json-schema.org/draft-04/schema#",
         "properties": {"a": {"type": "integer", "minimum": 3, "exclusiveMinimum": True}}},
        {"a": 4},
    ),
    "an empty range": ({"properties": {"a": {"type": "integer", "minimum": 3, "maximum": 2}}, "required": ["a"]},
                       {}),
    "a tuple of draft 7": (
        {"properties": {"p": {"type": "array", "items": [TEXT, {"type": "integer"}], "additionalItems": False}}},
        {"p": ["x", 1]},
    ),
    "a tuple of draft 2020": (
        {"properties": {"p": {"type": "array", "prefixItems": [TEXT], "items": False, "unevaluatedItems": False}}},
        {"p": ["x"]},
    ),
    "a reference with escapes": (
        {"definitions": {"a/b~c d": TEXT}, "properties": {"x": {"$ref": "#/definitions/a~1b~0c%20d"}}}, {"x": "y"},
    ),
    "a reference to a property": (
        {"properties": {"a": {"type": "integer"}, "b": {"$ref": "#/properties/a"}}}, {"a": 1, "b": 2},
    ),
    "a reference to nothing": ({"properties": {"a": {"$ref": "#/definitions/Nothing"}}}, {"a": 1}),
    "a reference to another document": ({"properties": {"a": {"$ref": "https://example.org/s.json#/a"}}}, {"a": 1}),
    "a dynamic reference": (
        {"$dynamicAnchor": "node", "properties": {"next": {"$dynamicRef": "#node"}}}, {"next": {}},
    ),
    "an identifier": ({"$id": "https://example.org/s.json", "properties": {"a": TEXT}}, {"a": "x"}),
    "an identifier that is no URI": ({"$id": "my schema", "properties": {"a": TEXT}}, {"a": "x"}),
    "an unknown dialect": ({"$schema": "https://example.org/dialect", "properties": {"a": TEXT}}, {"a": "x"}),
    "a tree": (
        {"$defs": {"node": {"type": "object", "properties": {
            "value": TEXT, "children": {"type": "array", "items": {"$ref": "#/$defs/node"}}}, "required": ["value"]}},
         "properties": {"root": {"$ref": "#/$defs/node"}}},
        {"root": {"value": "a", "children": [{"value": "b"}]}},
    ),
    "a circle": ({"anyOf": [{"$ref": "#"}]}, {"a": 1}),
    "alternatives by what is required": (
        {"properties": {"a": TEXT, "b": TEXT}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}, {"b": "x"},
    ),
    "one of overlapping": (
        {"properties": {"a": {"oneOf": [{"type": "number"}, {"type": "integer"}, {"type": "string"}]}}}, {"a": "x"},
    ),
    "an impossible intersection": ({"properties": {"a": {"allOf": [TEXT, {"type": "array"}]}}}, {"b": 1}),
    "an enumeration of everything": ({"properties": {"a": {"enum": [None, True, 1, 1.5, "x", [1], {"b": 2}]}}},
                                     {"a": {"b": 2}}),
    "an empty enumeration": ({"properties": {"a": {"enum": []}}}, {}),
    "a long enumeration": ({"properties": {"a": {"enum": [f"value {i}" for i in range(1500)]}}}, {"a": "value 77"}),
    "a long string": ({"properties": {"a": {**TEXT, "maxLength": 20_000}}}, {"a": "x" * 50}),
    "many properties": (
        {"properties": {f"p{i}": {**TEXT, "description": f"Number {i}"} for i in range(300)}}, {"p7": "x"},
    ),
    "deep nesting": (
        {"properties": {"a": {"properties": {"b": {"properties": {"c": {"properties": {"d": {
            "type": "array", "items": {"type": "array", "items": {"properties": {"e": TEXT}}}}}}}}}}}},
        {"a": {"b": {"c": {"d": [[{"e": "x"}]]}}}},
    ),
    "the resource of a cluster": (
        {"$schema": "http://json-schema.org/schema#", "type": "object", "x-kubernetes-group-version-kind": [],
         "definitions": {"Quantity": {"oneOf": [{"type": "string"}, {"type": "number"}]}},
         "properties": {"kind": {"type": ["string", "null"], "enum": ["Pod"]},
                        "limits": {"type": ["object", "null"],
                                   "additionalProperties": {"$ref": "#/definitions/Quantity"}},
                        "ports": {"type": ["array", "null"], "x-kubernetes-list-type": "map", "items": {
                            "type": ["object", "null"], "required": ["containerPort"],
                            "properties": {"containerPort": {"type": "integer", "format": "int32"}}}}}},
        {"kind": "Pod", "limits": {"cpu": "1"}, "ports": [{"containerPort": 80}]},
    ),
    "several types at the root": ({"type": ["object", "null"], "properties": {"a": TEXT}}, {"a": "x"}),
    "booleans as schemas": ({"properties": {"a": True, "b": False}}, {"a": [1]}),
    "a keyword of a wrong type": ({"properties": {"a": {**TEXT, "maxLength": "5"}}}, {"a": "x"}),
    "a type that is none": ({"properties": {"a": {"type": "text"}}}, {"a": "x"}),
    "properties named like keywords": (
        {"properties": {"not": TEXT, "pattern": TEXT, "format": {"type": "null"}, "$ref": {"type": "integer"},
                        "properties": {"type": "object", "properties": {"if": TEXT}}}},
        {"not": "x", "pattern": "(?=a)", "format": None, "$ref": 1, "properties": {"if": "y"}},
    ),
}  # fmt: skip

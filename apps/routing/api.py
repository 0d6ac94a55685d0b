"""`/v2` operations on the gateway: the policies of an environment, and the barrier before it."""

from typing import Any

from apps.projects import queries
from apps.projects.models import Environment
from apps.routing import barriers, policies
from edge.sentinel.debugging import HEADER, MOST_SECONDS, sign
from edge.sentinel.jwtauth import KEY_TYPES, MOST_SKEW_MS
from edge.sentinel.openapi import MOST_BODY_BYTES
from edge.sentinel.recording import FLAGS
from edge.sentinel.recording import MOST_BODY_BYTES as MOST_RECORDED_BYTES
from unkey import clock, errors
from unkey.env import env
from unkey.rpc.authorization import Rule, T, U
from unkey.rpc.call import Call
from unkey.rpc.routes import JSON, route
from unkey.rpc.schema import (
    Field,
    Schema,
    array,
    boolean,
    handle,
    integer,
    nullable,
    obj,
    optional,
    string,
)

_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
_ENVIRONMENT_NAMES = {"project": handle(), "app": handle(), "environment": handle()}
_NOTHING = obj({})

STRING_MATCH = obj(
    {
        "exact": optional(string(1, 1024)),
        "prefix": optional(string(1, 1024)),
        "regex": optional(string(1, 1024)),
        "ignoreCase": optional(boolean()),
    },
    exactly_one=("exact", "prefix", "regex"),
)
FIELD_MATCH = obj(
    {
        "name": string(1, 256),
        "present": optional({"type": "boolean", "enum": [True]}),
        "value": optional(STRING_MATCH),
    }
)
MATCH = obj(
    {
        "path": optional(obj({"path": STRING_MATCH})),
        "method": optional(obj({"methods": array(string(choices=_METHODS), least=1)})),
        "header": optional(FIELD_MATCH),
        "queryParam": optional(FIELD_MATCH),
    },
    exactly_one=("path", "method", "header", "queryParam"),
)
IDENTIFIER = obj(
    {
        "remoteIp": optional(obj({})),
        "header": optional(obj({"name": string(1, 256)})),
        "authenticatedSubject": optional(obj({})),
        "path": optional(obj({})),
        "principalField": optional(obj({"path": string(1, 512)})),
    },
    exactly_one=("remoteIp", "header", "authenticatedSubject", "path", "principalField"),
)
LOCATIONS = array(
    obj(
        {
            "bearer": optional(obj({})),
            "header": optional(obj({"name": string(1, 256), "stripPrefix": optional(string(0, 256))})),
            "queryParam": optional(obj({"name": string(1, 256)})),
        },
        exactly_one=("bearer", "header", "queryParam"),
    )
)
JWTAUTH = obj(
    {
        "jwksUri": optional(string(1, 2048)),
        "oidcIssuer": optional(string(1, 2048)),
        "publicKeyPem": optional(string(1, 16384)),
        "issuer": optional(string(1, 2048)),
        "audiences": optional(array(string(1, 2048), most=20)),
        "algorithms": optional(array(string(choices=tuple(KEY_TYPES)), least=1)),
        "subjectClaim": optional(string(1, 256)),
        "requiredClaims": optional(array(string(1, 256), most=20)),
        "forwardClaims": optional(array(string(1, 256), most=50)),
        "allowAnonymous": optional(boolean()),
        "clockSkewMs": optional(integer(0, MOST_SKEW_MS)),
        "jwksCacheMs": optional(integer(0)),
        "locations": optional(LOCATIONS),
    },
    exactly_one=("jwksUri", "oidcIssuer", "publicKeyPem"),
)
BASICAUTH = obj(
    {
        "credentials": array(
            obj({"username": string(1, 256), "passwordHash": string(1, 512)}), least=1, most=100
        )
    }
)
IP_RULES = obj(
    {
        "allow": optional(array(string(1, 64), most=1000)),
        "deny": optional(array(string(1, 64), most=1000)),
    }
)
KEYAUTH = obj(
    {
        "keyspaces": array(string(1, 256), least=1, most=5),
        "locations": optional(LOCATIONS),
        "permissionQuery": optional(string(0, 1000)),
        "ratelimits": optional(
            array(
                obj(
                    {
                        "name": string(1, 256),
                        "limit": optional(integer(1)),
                        "duration": optional(integer(1)),
                        "cost": optional(integer(1)),
                    }
                ),
                most=10,
            )
        ),
        "credits": optional(integer(0)),
    }
)
RATELIMIT = obj(
    {
        "limit": integer(1),
        "windowMs": integer(1),
        "identifier": optional(IDENTIFIER),
        "identifiers": optional(array(IDENTIFIER, least=1, most=5)),
    },
    exactly_one=("identifier", "identifiers"),
)
LOGGING = obj(
    {
        **{name: optional(boolean(), default=False) for name in FLAGS},
        "sampleRate": optional({"type": "number", "minimum": 0, "maximum": 1}),
        "maxBodyBytes": optional(integer(1, MOST_RECORDED_BYTES)),
        "redactHeaders": optional(array(string(1, 256), most=50)),
        "redactFields": optional(array(string(1, 256), most=50)),
    }
)
_MATCHES = array(MATCH, most=10)
_RULES: dict[str, Schema | Field] = {
    "keyauth": optional(KEYAUTH),
    "jwtauth": optional(JWTAUTH),
    "basicauth": optional(BASICAUTH),
    "ipRules": optional(IP_RULES),
    "ratelimit": optional(RATELIMIT),
    "firewall": optional(obj({"action": string(choices=("ACTION_DENY", "ACTION_LOG"))})),
    "openapi": optional(obj({"maxBodyBytes": optional(integer(1, MOST_BODY_BYTES))})),
    "logging": optional(LOGGING),
}
_POLICY: dict[str, Schema | Field] = {
    "name": string(1, 256),
    "enabled": boolean(),
    "match": optional(_MATCHES),
    **_RULES,
}
_NOT_FOUND = [errors.ProjectNotFound, errors.AppNotFound, errors.EnvironmentNotFound]


def _rule(action: str) -> Rule:
    path = "projects/{project}/apps/{app}/environments/{environment}"
    return T(f"environment.{{environment}}.{action}") | U(f"{path}#{action}")


def _environment(call: Call) -> Environment:
    body = call.body
    found = queries.find_environment(body["project"], body["app"], body["environment"])
    call.authorize(project=found.app.project_id, app=found.app_id, environment=found.id)
    return found


@route(
    "gateway.listPolicies",
    request=obj(_ENVIRONMENT_NAMES),
    response=array(obj({"id": string(), **_POLICY}), most=50),
    permission=_rule("read_policies"),
    errors=_NOT_FOUND,
)
def list_policies(call: Call) -> JSON:
    """List the policies of an environment in the order of their evaluation."""
    stored: list[Any] = _environment(call).policies
    return stored


@route(
    "gateway.setPolicies",
    request=obj({**_ENVIRONMENT_NAMES, "policies": array(obj(_POLICY), most=50)}),
    response=_NOTHING,
    permission=_rule("set_policies"),
    errors=[*_NOT_FOUND, errors.KeySpaceNotFound],
)
def set_policies(call: Call) -> JSON:
    """Replace the policies of an environment for the deployments to come."""
    policies.set_policies(_environment(call), call.body["policies"], actor=call.actor)
    return {}


@route(
    "gateway.updatePolicy",
    request=obj(
        {
            **_ENVIRONMENT_NAMES,
            "policyId": string(1, 512),
            "name": optional(string(1, 256)),
            "enabled": optional(boolean()),
            "match": optional(nullable(_MATCHES)),
            **_RULES,
        }
    ),
    response=_NOTHING,
    permission=_rule("update_policy"),
    errors=[*_NOT_FOUND, errors.PolicyNotFound, errors.KeySpaceNotFound],
)
def update_policy(call: Call) -> JSON:
    """Change one policy of an environment for the deployments to come."""
    environment = _environment(call)
    changes = {
        name: value for name, value in call.body.items() if name not in {*_ENVIRONMENT_NAMES, "policyId"}
    }
    policies.update_policy(environment, call.body["policyId"], changes, actor=call.actor)
    return {}


_RANGES = array(string(1, 64), most=1000)
_BARRIER = obj(
    {
        "blocked": _RANGES,
        "maintenance": obj(
            {
                "enabled": boolean(),
                "message": optional(string(1, 500)),
                "retryAfter": optional(integer(0, 604_800)),
                "exempt": _RANGES,
            }
        ),
    }
)


@route(
    "gateway.getBarrier",
    request=obj(_ENVIRONMENT_NAMES),
    response=_BARRIER,
    permission=_rule("read_policies"),
    errors=_NOT_FOUND,
)
def get_barrier(call: Call) -> JSON:
    """Return whom edges refuse before the environment's deployments: blocked addresses, maintenance mode."""
    return barriers.outline(barriers.find_barrier(_environment(call)))


@route(
    "gateway.setBarrier",
    request=obj(
        {
            **_ENVIRONMENT_NAMES,
            "blocked": optional(_RANGES),
            "maintenance": optional(
                obj(
                    {
                        "enabled": boolean(),
                        "message": optional(string(1, 500)),
                        "retryAfter": optional(integer(0, 604_800)),
                        "exempt": optional(_RANGES),
                    }
                )
            ),
        }
    ),
    response=_BARRIER,
    permission=_rule("set_policies"),
    errors=_NOT_FOUND,
)
def set_barrier(call: Call) -> JSON:
    """Block addresses, or begin or end maintenance, at every edge within a second and without a deployment."""
    environment = _environment(call)
    barrier = barriers.set_barrier(
        environment,
        blocked=call.body.get("blocked"),
        maintenance=call.body.get("maintenance"),
        actor=call.actor,
    )
    return barriers.outline(barrier)


@route(
    "gateway.createDebugHeader",
    request=obj({**_ENVIRONMENT_NAMES, "seconds": optional(integer(1, MOST_SECONDS), default=900)}),
    response=obj({"name": string(), "value": string(redact=True), "expiresAt": integer()}),
    permission=_rule("read_policies"),
    errors=_NOT_FOUND,
)
def create_debug_header(call: Call) -> JSON:
    """Sign a header: requests that carry it are answered with what each policy did, in X-Unkey-Trace."""
    environment = _environment(call)
    until = int(clock.now_ms() / 1000) + call.body["seconds"]
    value = sign(env.secret("AGENT_TOKEN"), environment.id, until)
    return {"name": HEADER, "value": value, "expiresAt": until * 1000}

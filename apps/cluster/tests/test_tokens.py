"""Tokens of satellites, through the doors that they open."""

import io
from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command
from django.test import Client

from apps.cluster import tokens
from apps.cluster.models import Agent, Token
from unkey import clock, errors
from unkey.env import env

pytestmark = pytest.mark.django_db


def beat(token: str, agent: str = "a1", region: str = "eu") -> tuple[int, str]:
    """Send a heartbeat; return the status and what is wrong with it."""
    answer = Client(headers={"Authorization": f"Bearer {token}"}).post(
        "/internal/agents/heartbeat",
        {"agent": agent, "region": region, "software": "9.9"},
        content_type="application/json",
    )
    return answer.status_code, answer.json().get("error", {}).get("detail", "")


def test_agent_registers_by_a_token_of_its_own():
    row, text = tokens.create("agent", "a1", "eu")
    assert text.startswith("unkey_agent_")
    assert beat(text) == (200, "")
    agent = Agent.objects.get()
    assert (agent.id, agent.region.name, agent.software, agent.token_id) == ("a1", "eu", "9.9", row.id)
    assert Token.objects.get().last_used_at is not None
    assert text not in str(Token.objects.values().get())


def test_token_speaks_for_nobody_else():
    _, text = tokens.create("agent", "a1", "eu")
    assert beat(text, region="us") == (
        403,
        "This token speaks for region eu, not for us: check REGION.",
    )
    assert beat(text, agent="a2") == (403, "This token is of a1, not of a2: check AGENT_ID.")
    _, of_edge = tokens.create("edge", "a1", "eu")
    assert beat(of_edge) == (403, "This is the token of an edge.")
    assert not Agent.objects.exists()
    answer = Client(headers={"Authorization": f"Bearer {text}"}).post(
        "/internal/secrets", {"deploymentId": "d_x", "region": "us"}, content_type="application/json"
    )
    assert answer.status_code == 403
    answer = Client(headers={"Authorization": f"Bearer {text}"}).post(
        "/internal/deployments/wake",
        {"edge": "a1", "deploymentId": "d_x", "sleep": 1},
        content_type="application/json",
    )
    assert (answer.status_code, answer.json()["error"]["detail"]) == (403, "This is the token of an agent.")


def test_two_are_valid_while_one_replaces_the_other():
    old, old_text = tokens.create("agent", "a1", "eu")
    new, new_text = tokens.rotate("agent", "a1", timedelta(hours=1))
    assert (new.region.name, old_text == new_text) == ("eu", False)
    assert [beat(old_text)[0], beat(new_text)[0]] == [200, 200]
    with pytest.raises(errors.PreconditionFailed, match=f"revoke one first .{old.id} is the older one"):
        tokens.rotate("agent", "a1", timedelta(hours=1))
    with clock.shifted(timedelta(hours=1, seconds=1)):
        assert [beat(old_text)[0], beat(new_text)[0]] == [401, 200]
        tokens.rotate("agent", "a1", timedelta())
        assert beat(new_text)[0] == 401


def test_revoked_token_is_refused_at_once():
    row, text = tokens.create("agent", "a1", "eu")
    tokens.revoke(row.id)
    assert beat(text) == (401, tokens.HOW)
    with pytest.raises(errors.PreconditionFailed, match="There is no token"):
        tokens.revoke(row.id)
    with pytest.raises(errors.PreconditionFailed, match="has no valid token: create one"):
        tokens.rotate("agent", "a1", timedelta())


def test_earlier_tokens_of_the_installation_are_taken_while_they_are_listed(monkeypatch):
    assert beat("earlier")[0] == 401
    monkeypatch.setitem(env._values, "AGENT_PREVIOUS_TOKENS", ("earlier", "earliest"))
    assert [beat(token)[0] for token in ("earlier", "earliest", env.secret("AGENT_TOKEN"), "other")] == [
        200,
        200,
        200,
        401,
    ]


def test_control_plane_proves_itself_to_an_agent_by_the_digest_of_the_agents_token():
    _, text = tokens.create("agent", "a1", "eu")
    beat(text)
    agent = Agent.objects.select_related("token").get()
    assert tokens.credentials_for(agent) == [tokens.digest_of(text)]
    beat(env.secret("AGENT_TOKEN"))
    assert tokens.credentials_for(Agent.objects.get()) == [env.secret("AGENT_TOKEN")]


def manage(*arguments: str) -> str:
    """Run `manage.py cluster token …`; return what it prints."""
    out = io.StringIO()
    call_command("cluster", "token", *arguments, stdout=out, stderr=io.StringIO())
    return out.getvalue().strip()


def test_operator_who_mistypes_a_region_is_told_which_there_are():
    with pytest.raises(
        CommandError, match=r"^there is no region eu: there is none yet; --new-region makes it$"
    ):
        manage("create", "agent", "a1", "--region", "eu")
    assert not Token.objects.exists()
    assert beat(manage("create", "agent", "a1", "--region", "eu", "--new-region"))[0] == 200
    with pytest.raises(CommandError, match=r"^there is no region ue: there are eu; --new-region makes it$"):
        manage("create", "agent", "a2", "--region", "ue")
    assert manage("create", "agent", "a2", "--region", "eu").startswith("unkey_agent_")


@pytest.mark.parametrize("hours", ["-1", "nan", "inf", "1e300"])
def test_a_grace_that_makes_no_sense_changes_nothing(hours: str):
    _, text = tokens.create("agent", "a1", "eu")
    with pytest.raises(CommandError, match=r"^--grace-hours is from 0 to 8784, not "):
        manage("rotate", "agent", "a1", f"--grace-hours={hours}")
    assert beat(text)[0] == 200
    assert Token.objects.get().expires_at is None
    assert beat(manage("rotate", "agent", "a1", "--grace-hours=0"))[0] == 200
    assert beat(text)[0] == 401

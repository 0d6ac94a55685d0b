"""Tells whether a request comes from an agent."""

import hmac

from unkey.env import env


def bears_agent_token(authorization: str) -> bool:
    """Say whether an Authorization header bears AGENT_TOKEN; takes equally long for every wrong one."""
    expected = f"Bearer {env.secret('AGENT_TOKEN')}"
    return hmac.compare_digest(authorization.encode(), expected.encode())

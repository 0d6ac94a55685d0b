"""Tells whether a request bears the installation's own token of agents and edges."""

import hmac

from unkey.env import env


def bears_agent_token(authorization: str) -> bool:
    """Say whether a header bears AGENT_TOKEN or one of AGENT_PREVIOUS_TOKENS; every wrong one takes equally long."""
    given = authorization.encode()
    accepted = [env.secret("AGENT_TOKEN"), *env.AGENT_PREVIOUS_TOKENS]
    return any(hmac.compare_digest(given, f"Bearer {token}".encode()) for token in accepted)

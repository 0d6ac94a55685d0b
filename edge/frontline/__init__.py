"""Frontline: host name to route to deployment to instance; certificates by server name."""

"""What people may do about an error of the edge: a visitor, by its status or code, and its owner, by its code."""

from unkey.errors import Kind

_VISITOR = {
    400: "The request could not be understood. Go back, reload the page, and try again.",
    401: "You have to prove who you are. Sign in again, or check the key or password that you were given.",
    403: "You are not let in. If you should be, tell the owner of this site the request id below.",
    404: "Check the address for a slip. If you followed a link, tell the owner of this site about it.",
    405: "This cannot be done here. Go back, and try another way.",
    408: "Your request came too slowly. Check your connection, and try again.",
    413: "What you sent is too large. Try with something smaller.",
    422: "This site is not set up properly. Its owner has to mend it; the request id below will help.",
    429: "Too many requests came from you. Wait a moment, then reload the page.",
    431: "Your browser sent too much. Delete this site's cookies, and reload the page.",
}
_VISITOR_OF_FAULT = (
    "Nothing is wrong with your browser or your connection. Reload the page in a minute; if nothing has changed, "
    "tell the owner of this site the request id below."
)
_VISITOR_BY_CODE = {
    "err:frontline:capacity:deployment_offline": "This site has been switched off, and waiting does not bring it "
    "back. Ask its owner to start it, or for a newer link.",
}
_OWNER = {
    "err:frontline:routing:config_not_found": "Deploy an app with this host name, or add the domain to one. "
    "A new one works within a second.",
    "err:frontline:capacity:no_running_instances": "No instance is healthy. Look at the deployment's logs, and "
    "at its health check.",
    "err:frontline:capacity:deployment_offline": "The deployment is stopped, and stays so until you start it: with "
    "`unkey start`, or deployments.startDeployment. Or deploy again.",
    "err:frontline:capacity:deployment_waking": "The deployment was asleep, and is still starting. Look at its "
    "logs if that goes on.",
    "err:frontline:capacity:under_maintenance": "You have closed this environment for maintenance. "
    "gateway.setBarrier opens it again.",
    "err:frontline:config:invalid_configuration": "A policy cannot be evaluated, so nobody is let through. The "
    "text above names it; set the policies again.",
    "err:frontline:upstream:bad_gateway": "Your app hung up, or did not answer in HTTP. Its logs say more.",
    "err:frontline:upstream:service_unavailable": "Your app takes no connections. Check that it runs, and that "
    "it listens on 0.0.0.0 and on the port in PORT.",
    "err:frontline:upstream:gateway_timeout": "Your app took too long. Let long work go on in the background, or "
    "allow it more time.",
}
_OWNER_OF_REQUEST = "The request was refused before it reached your app. The code says by which rule."
_OWNER_OF_FAULT = "The request id finds what happened in the logs."


def for_visitor(kind: Kind) -> str:
    """Return what somebody may do who only wants to see the page."""
    return _VISITOR_BY_CODE.get(kind.code) or _VISITOR.get(kind.status, _VISITOR_OF_FAULT)


def for_owner(kind: Kind) -> str:
    """Return what the app's owner may do."""
    return _OWNER.get(kind.code) or (_OWNER_OF_REQUEST if kind.status < 500 else _OWNER_OF_FAULT)

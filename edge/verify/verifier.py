"""Key verification on the edge: `keys.verifyKey` and the gateway's `keyauth`, answered from the store.

    subject = verifier.find(text)
    if not isinstance(subject, Subject | None): subject = await subject     # a key never seen before
    verdict = verifier.verify(subject, credits=1)
    if not isinstance(verdict, Verdict): verdict = await verdict            # credits must be leased first
"""

from collections.abc import Awaitable, Mapping

from edge.store.store import Store
from edge.verify.permissions import Query
from edge.verify.steps import Demand, Subject, Verdict


class Verifier:
    """Verifies keys against a store; one per edge process."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def find(self, text: str) -> Subject | None | Awaitable[Subject | None]:
        """Return the key behind a presented text, None if there is none; awaitable if it must be read."""
        raise NotImplementedError

    def verify(
        self,
        subject: Subject,
        *,
        query: Query | None = None,
        demands: tuple[Demand, ...] = (),
        credits: int | None = None,
        remote_ip: str | None = None,
        check_ip: bool = False,
    ) -> Verdict | Awaitable[Verdict]:
        """Run the verification steps on a key.

        Args:
            query: parsed permission query.
            demands: named or ad-hoc rate limits, besides those that apply by themselves.
            credits: cost; None: 1 if the key has a finite balance.
            remote_ip: the caller's address, for the API's list; looked at if `check_ip`.

        Raises:
            PreconditionFailed: a demand names a limit that neither key nor identity has.
        """
        raise NotImplementedError

    def handle_verify_key(
        self, headers: Mapping[str, str], body: bytes, remote_ip: str
    ) -> tuple[int, bytes, dict[str, str]] | Awaitable[tuple[int, bytes, dict[str, str]]]:
        """Answer `POST /v2/keys.verifyKey`: status, JSON body, extra headers."""
        raise NotImplementedError

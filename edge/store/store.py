"""The store: every look-up of the data plane, from memory; fed by one background thread.

    store = Store()
    await store.start()
    route = store.route("shop.unkey.localhost")

At start the snapshot on disk is loaded; then the change feed is followed. While the database is
gone, everything that is in memory goes on.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import structlog

from edge.store import disk
from edge.store.credits import Granted, Wallet, Wish
from edge.store.database import Database, DatabaseGone
from edge.store.held import Held
from edge.store.ledger import Ledger
from edge.store.reading import Reader, Wanted
from edge.store.records import (
    Absence,
    Api,
    Barrier,
    Certificate,
    Contract,
    Identity,
    Instance,
    KeyName,
    KeyRecord,
    Record,
    Role,
    RootKey,
    Route,
    SealedCertificate,
    Sentinel,
    Workspace,
)
from edge.store.state import State
from unkey import clock
from unkey.env import env
from unkey.errors import Fault, ServiceUnavailable

if TYPE_CHECKING:
    from apps.keys.credits import Grant
    from edge.verify.namespaces import Space
    from unkey.actors import Actor

log = structlog.get_logger("edge.store")

_T = TypeVar("_T")

BEAT_SECONDS = 2.0
ABSENT_SECONDS = 5.0
SNAPSHOT_SECONDS = 0.5
REPORT_SECONDS = 1.0
USE_SECONDS = 30.0
TICK_SECONDS = 30.0
_LONGEST_PAUSE = 1.0
_OPENING_MOST = 200
_WISHES_AT_ONCE = 200
_AFTER_FAULT_SECONDS = 0.1
_LONGEST_AFTER_FAULT = 5.0
_PAGE_SECONDS = 30
# A route is never known before the policies and the instances behind it.
_TOGETHER = ("sentinels", "instances", "certificates", "routes")
# A snapshot of a million keys takes seconds to write: it may take this part of the time, no more.
_SNAPSHOT_SHARE = 0.05


class Store:
    """Everything that the edge serves from.

    Look-ups are synchronous and touch memory alone; call them from the event loop's thread.

    Args:
        edge_id, region, role: who this edge is; None: from the settings.
        folder: where snapshot and ledger are kept; None: `var/edge/<edge_id>`.
        poll_ms: how often the database is asked for changes.
        key_capacity: most keys, and most identities, kept in memory.

    Attributes:
        ready: a snapshot was loaded from disk, or the database was read once.
        connected: the database answered when it was last asked.
        epoch: changes whenever anything about keys, their holders or workspaces does.
        counters: events since start by name, for metrics.
        broken: set when a background task has ended for good: the process must not go on.
    """

    def __init__(
        self,
        *,
        edge_id: str | None = None,
        region: str | None = None,
        role: str | None = None,
        folder: Path | None = None,
        poll_ms: int | None = None,
        key_capacity: int | None = None,
    ) -> None:
        self.edge_id: str = edge_id or env.EDGE_ID
        self.region: str = region or env.REGION
        self.role: str = role or (
            "all" if "api" in env.EDGE_ROLE and "frontline" in env.EDGE_ROLE else min(env.EDGE_ROLE)
        )
        self.ready = False
        self.connected = False
        self.broken = asyncio.Event()
        self.epoch = 0
        self.counters: Counter[str] = Counter()
        self._folder: Path = folder or env.UNKEY_VAR / "edge" / self.edge_id
        self._poll_seconds: float = (env.EDGE_POLL_MS if poll_ms is None else poll_ms) / 1000
        self._capacity: int = env.EDGE_KEY_CAPACITY if key_capacity is None else key_capacity
        self._state = State(self.region, self._capacity)
        self._sealed: dict[str, SealedCertificate] = {}
        self._callbacks: list[Callable[[str, Sequence[Record]], None]] = []
        self._ticks: list[Callable[[], object]] = []
        self._reader = Reader(self._read_in, self.counters)
        self._database = Database(_configure)
        # What is told to the cluster waits for other writers, who may take seconds: on a connection of its
        # own it keeps nobody from hearing of a switch.
        self._cluster = Database(_configure)
        # Neither does who looks unknown keys up, or leases credits.
        self._lookups = Database(_configure)
        self._credits = Database(_configure)
        self._opening: dict[tuple[str, str, bool], asyncio.Task[None]] = {}
        self._moved = asyncio.Event()
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="edge-snapshot")
        self._tasks: list[asyncio.Task[None]] = []
        self._dirty = asyncio.Event()
        self._started_at = clock.now()
        self._ledger: Ledger | None = None
        self._wallet: Wallet | None = None
        self._first_contact = True
        self._used: set[str] = set()
        self._in_use: Callable[[], Iterable[str]] = tuple
        self._use_seconds = min(USE_SECONDS, env.PREVIEW_IDLE_SECONDS / 4)
        self._use_told_at = -USE_SECONDS

    # Look-ups

    @property
    def applied(self) -> dict[str, int]:
        """Version applied per stream."""
        return self._state.applied

    def route(self, host: str) -> Route | None:
        """Return the route of a host name (lower case, no port)."""
        found = self._state.routes.get(host)
        return None if found is None or found.deleted else found

    def sentinel(self, deployment_id: str) -> Sentinel | None:
        """Return what is enforced in front of a deployment."""
        return self._state.sentinels.get(deployment_id)

    def contract(self, deployment_id: str) -> Contract | None:
        """Return what requests to a deployment must look like."""
        return self._state.contracts.get(deployment_id)

    def barrier(self, environment_id: str) -> Barrier | None:
        """Return what is refused before every deployment of an environment."""
        return self._state.barriers.get(environment_id)

    def instances(self, deployment_id: str) -> tuple[Instance, ...]:
        """Return a deployment's running instances, this region's first."""
        return self._state.running.get(deployment_id, ())

    def certificate(self, server_name: str) -> Certificate | None:
        """Return a certificate: exact host name, else a one-label wildcard."""
        return self._state.certificate(server_name)

    def key(self, digest: str) -> KeyRecord | Absence:
        """Return a key by hash, or why it is not in memory."""
        return self._state.key(digest, time.monotonic())

    def held_key(self, digest: str) -> Held[KeyRecord] | None:
        """Return where a key by its hash is held in memory, deleted ones too."""
        return self._state.keys.get(digest)

    def held_identity(self, identity_id: str) -> Held[Identity] | None:
        """Return where an identity is held in memory, deleted ones too."""
        return self._state.identities.get(identity_id)

    def root_key(self, digest: str) -> RootKey | Absence:
        """Return a root key by hash, or why it is not in memory."""
        return self._state.root_key(digest, time.monotonic())

    def workspace(self, workspace_id: str) -> Workspace | None:
        """Return a workspace."""
        return self._state.workspaces.get(workspace_id)

    def api(self, api_id: str) -> Api | None:
        """Return an API, deleted ones too."""
        return self._state.apis.get(api_id)

    def role_record(self, role_id: str) -> Role | None:
        """Return a role."""
        return self._state.roles.get(role_id)

    def identity(self, identity_id: str) -> Identity | None:
        """Return an identity, deleted ones too."""
        return self._state.identities.peek(identity_id)

    def on_change(self, callback: Callable[[str, Sequence[Record]], None]) -> None:
        """Call `callback(stream, records)` in the event loop after records were applied."""
        self._callbacks.append(callback)

    def on_tick(self, callback: Callable[[], object]) -> None:
        """Call `callback()` in the event loop every half minute."""
        self._ticks.append(callback)

    def report_use_of(self, used: set[str], in_use: Callable[[], Iterable[str]]) -> None:
        """Tell the cluster from now on which deployments are used, twice a minute.

        Args:
            used: deployments that had requests; emptied when they have been told.
            in_use: returns the addresses of instances that a request is open to.
        """
        self._used, self._in_use = used, in_use

    async def fetch_key(self, digest: str) -> KeyRecord | None:
        """Read a never-seen key from the database; concurrent callers share one read.

        Raises:
            ServiceUnavailable: the database does not answer, or too many keys are being looked up.
        """
        await self._reader.read(("key", digest))
        found = self._state.key(digest, time.monotonic())
        if found is Absence.NOT_LOADED:
            raise _left_again()
        return found if isinstance(found, KeyRecord) else None

    async def take_over(
        self, workspace_id: str, migration: str, text: str, digest: str, may: Callable[[KeyName], bool]
    ) -> KeyRecord | None:
        """Give an imported key a hash of ours at its first use; None: there is none of this text.

        Args:
            workspace_id: whose keys may be taken over.
            migration: name or id of the migration that the key was imported under.
            text: what was presented.
            digest: the hash that its row is found by from now on.
            may: whether who asks may verify the key.

        Raises:
            ServiceUnavailable: the database does not answer.
        """

        def work() -> bool:
            from apps.keys.imports import take_over

            return take_over(workspace_id, migration, text, may)

        try:
            found = await self._ask(work)
        except DatabaseGone as error:
            raise ServiceUnavailable("The key cannot be looked for: the database does not answer.") from error
        return await self.fetch_key(digest) if found else None

    async def fetch_root_key(self, digest: str) -> RootKey | None:
        """Read a never-seen root key from the database; concurrent callers share one read.

        Raises:
            ServiceUnavailable: the database does not answer, or too many keys are being looked up.
        """
        await self._reader.read(("root_key", digest))
        found = self._state.root_key(digest, time.monotonic())
        if found is Absence.NOT_LOADED:
            raise _left_again()
        return found if isinstance(found, RootKey) else None

    def namespace(self, workspace_id: str, name: str) -> "Space | Absence":
        """Return a namespace of rate limits by its id or name, deleted ones too, or why it is not in memory."""
        return self._state.namespace(workspace_id, name, time.monotonic())

    async def fetch_namespace(
        self, workspace_id: str, name: str, creator: "Actor | None" = None
    ) -> "Space | None":
        """Read a never-seen namespace from the database; concurrent callers share one read.

        Args:
            creator: as whom one that is missing is made; None: it is not.

        Raises:
            ServiceUnavailable: the database does not answer, or too many namespaces are being looked up.
        """
        asked = (workspace_id, name, creator is not None)
        task = self._opening.get(asked)
        if task is None:
            if len(self._opening) >= _OPENING_MOST:
                raise ServiceUnavailable("Too many namespaces are being looked up. Please try again.")
            work = self._open_namespace(workspace_id, name, creator)
            task = self._opening[asked] = asyncio.get_running_loop().create_task(work)
            task.add_done_callback(lambda _: self._opening.pop(asked, None))
        try:
            await asyncio.shield(task)
        except DatabaseGone as error:
            self.counters["fetches_failed"] += 1
            raise ServiceUnavailable(
                "This namespace is not known here yet and the database does not answer."
            ) from error
        found = self.namespace(workspace_id, name)
        return None if isinstance(found, Absence) else found

    async def _open_namespace(self, workspace_id: str, name: str, creator: "Actor | None") -> None:
        self.counters["fetches"] += 1
        # What is made waits for other writers, as what is told to the cluster does.
        database = self._lookups if creator is None else self._cluster
        work = partial(_feed_call, "namespace", workspace_id, name, creator, self._rejected)
        loop = asyncio.get_running_loop()
        records = await loop.run_in_executor(database.executor, database.call, work)
        if records:
            self._take("keys", records)
            self._dirty.set()
        else:
            self._state.absent_namespaces.put((workspace_id, name), time.monotonic() + ABSENT_SECONDS)

    # Credits

    @property
    def wallet(self) -> Wallet:
        """The credits that this edge has leased.

        Raises:
            RuntimeError: the store was not started.
        """
        if self._wallet is None:
            raise RuntimeError("the store was not started")
        return self._wallet

    # Life

    async def start(self) -> None:
        """Load the snapshot and begin to follow the database.

        Returns as soon as something can be served: at once after a snapshot, else after the first
        attempt to read the database, whether it came off or not.

        Raises:
            LedgerInUse: another process runs under this EDGE_ID.
            OSError: the folder cannot be written.
        """
        loop = asyncio.get_running_loop()
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._ledger = await loop.run_in_executor(self._writer, Ledger, self._folder / "credits.ledger")
        self._wallet = Wallet(self._ledger, _Bank(self), self._count, time.monotonic, self._capacity)
        self._wallet.resume()
        await self._load()
        first = asyncio.Event()
        for work in (
            partial(self._follow, first),
            self._keep_telling,
            self._keep_snapshot,
            self._report_credits,
            self._tick,
        ):
            task = loop.create_task(self._forever(work))
            task.add_done_callback(self._ended)
            self._tasks.append(task)
        if not self.ready:
            await first.wait()

    async def stop(self) -> None:
        """Write the snapshot, give credits back, sign off from the cluster."""
        for task in self._tasks:
            task.remove_done_callback(self._ended)
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._reader.stop()
        try:
            await self.wallet.close()
            await self._tell_use()
            await self._tell(partial(_feed_call, "sign_off", self.edge_id))
        except DatabaseGone as error:
            log.warning("edge.stopped_without_database", error=str(error))
        except Exception:  # the snapshot is worth writing all the same
            log.exception("edge.stopped_with_fault")
        if self._dirty.is_set():
            await self._save()
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._database.close)
        await loop.run_in_executor(None, self._cluster.close)
        await loop.run_in_executor(None, self._lookups.close)
        await loop.run_in_executor(None, self._credits.close)
        self._writer.shutdown()
        if self._ledger is not None:
            self._ledger.close()

    # The database's threads

    async def _ask(self, work: Callable[[], _T]) -> _T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._database.executor, self._database.call, work)

    async def _tell(self, work: Callable[[], _T]) -> _T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._cluster.executor, self._cluster.call, work)

    async def _bank(self, work: Callable[[], _T]) -> _T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._credits.executor, self._credits.call, work)

    async def _forever(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run an endless task; a fault in it is told, and after a pause it begins anew."""
        name = getattr(work, "func", work).__name__.removeprefix("_")
        pause = 0.0
        while True:
            began = time.monotonic()
            try:
                await work()
            except Exception:
                log.exception("edge.task_failed", task=name)
            else:
                log.error("edge.task_returned", task=name)
            self._count(f"task_failed_{name}")
            lasted = time.monotonic() - began > TICK_SECONDS
            pause = 0.0 if lasted else pause
            pause = min(max(pause * 2, _AFTER_FAULT_SECONDS), _LONGEST_AFTER_FAULT)
            await asyncio.sleep(pause)

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        log.critical("edge.task_ended", error=repr(error))
        self.broken.set()

    async def _follow(self, first: asyncio.Event) -> None:
        pause = self._poll_seconds
        told: dict[str, int] | None = None
        while True:
            try:
                await self._poll()
                self._reached()
                if self._first_contact:
                    await self.wallet.start_over()
                    self._first_contact = False
                pause = self._poll_seconds
                if self.applied != told:
                    told = dict(self.applied)
                    self._moved.set()
            except DatabaseGone as error:
                self._lost(error)
                pause = min(max(pause * 2, 0.1), _LONGEST_PAUSE)
            finally:
                first.set()
            await asyncio.sleep(pause)

    async def _keep_telling(self) -> None:
        """Tell the cluster what was applied, as soon as it was, and at least every two seconds."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BEAT_SECONDS):
                    await self._moved.wait()
            self._moved.clear()
            if not self.connected or self._first_contact:
                continue
            if await self._beat(dict(self.applied)):
                await self._tell_use_in_time(time.monotonic())
            else:
                await asyncio.sleep(_AFTER_FAULT_SECONDS)
                self._moved.set()

    async def _beat(self, applied: dict[str, int]) -> bool:
        try:
            await self._tell(
                partial(_feed_call, "beat", self.edge_id, self.region, self.role, applied, self._started_at)
            )
        except DatabaseGone as error:
            log.warning("edge.beat_failed", error=str(error))
            self.counters["beats_failed"] += 1
            return False
        return True

    async def _tell_use_in_time(self, now: float) -> None:
        if now - self._use_told_at < self._use_seconds:
            return
        try:
            await self._tell_use()
        except DatabaseGone as error:
            log.warning("edge.use_not_told", error=str(error))
            self.counters["use_reports_failed"] += 1
        else:
            self._use_told_at = now

    async def _tell_use(self) -> None:
        """Tell which deployments had requests since this was last told, or have one still.

        Raises:
            DatabaseGone: it will be told later.
        """
        busy = set(self._in_use())
        used = set(self._used)
        if busy:
            running = self._state.running.items()
            used.update(name for name, there in running if any(each.address in busy for each in there))
        self._used.clear()
        try:
            await self._tell(partial(_feed_call, "report_use", self.edge_id, clock.now(), sorted(used)))
        except BaseException:
            self._used.update(used)
            raise

    async def _poll(self) -> None:
        heads = await self._ask(partial(_feed_call, "heads"))
        behind = sorted(stream for stream, head in heads.items() if self.applied.get(stream) != head)
        together = [stream for stream in _TOGETHER if stream in behind]
        if together:
            await self._move(together)
        for stream in behind:
            if stream not in together:
                await self._catch_up(stream, heads[stream])
        self.ready = True

    async def _catch_up(self, stream: str, head: int) -> None:
        applied = self.applied.get(stream)
        if applied is not None and head < applied:
            return await self._move([stream])
        loop = asyncio.get_running_loop()

        def read() -> int:
            from edge.store import feed

            since = feed.FULL if applied is None else applied
            with feed.cut() as heads:
                head = heads.get(stream, 0)
                for page in feed.pages(stream, since, head, self._capacity, self._rejected):
                    # Waiting for each page to be taken in keeps a large first read from piling up.
                    asyncio.run_coroutine_threadsafe(self._take_page(stream, page), loop).result(
                        _PAGE_SECONDS
                    )
                return head

        self.applied[stream] = await self._ask(read)
        self._dirty.set()

    async def _move(self, streams: Sequence[str]) -> None:
        """Take several streams in as of one moment, and at one moment: nobody sees half of a switch."""
        applied = dict(self.applied)

        def read() -> list[tuple[str, int, bool, list[Record]]]:
            from edge.store import feed

            read_in = []
            with feed.cut() as heads:
                compacted = feed.compacted()
                for stream in streams:
                    known, head = applied.get(stream), heads.get(stream, 0)
                    # A head that went back: the database is in an earlier state, or is another one. One
                    # that was compacted further than we are: ends of rows may have been removed unseen.
                    anew = known is not None and (head < known or known < compacted.get(stream, 0))
                    since = feed.FULL if known is None or anew else known
                    pages = feed.pages(stream, since, head, self._capacity, self._rejected)
                    read_in.append((stream, head, anew, [record for page in pages for record in page]))
            return read_in

        for stream, head, anew, records in await self._ask(read):
            if anew:
                log.warning("edge.stream_read_anew", stream=stream, applied=applied[stream], head=head)
                self._state.forget(stream, _shard_of)
                if stream == "certificates":
                    self._sealed.clear()
            self._take(stream, records)
            self.applied[stream] = head
        self._dirty.set()

    async def _take_page(self, stream: str, records: Sequence[Record]) -> None:
        self._take(stream, records)

    def _take(self, stream: str, records: Sequence[Record]) -> None:
        opened = [
            self._open(record) if isinstance(record, SealedCertificate) else record for record in records
        ]
        changed = self._state.apply([record for record in opened if record is not None])
        if changed and stream.startswith(("keys", "snapshot")):
            self.epoch += 1
        wallet = self.wallet
        for record in changed:
            if isinstance(record, KeyRecord):
                wallet.note(record)
        for callback in self._callbacks:
            try:
                callback(stream, changed)
            except Exception:
                log.exception("edge.on_change_failed", stream=stream)

    def _open(self, sealed: SealedCertificate) -> Certificate | None:
        from apps.vault import services as vault

        known = self._sealed.get(sealed.hostname)
        if known is None or known.version < sealed.version:
            self._sealed[sealed.hostname] = sealed
        try:
            private_key = vault.decrypt(sealed.keyring, sealed.ciphertext)
        except Exception as error:
            # Whatever is wrong with one certificate or its key ring, the others are served.
            log.error("edge.certificate_rejected", hostname=sealed.hostname, error=str(error))
            self._rejected("certs_certificate")
            return None
        return Certificate(sealed.hostname, sealed.chain, private_key, sealed.version)

    async def _read_in(self, batch: Sequence[Wanted]) -> None:
        keys = [digest for kind, digest in batch if kind == "key"]
        root_keys = [digest for kind, digest in batch if kind == "root_key"]
        loop = asyncio.get_running_loop()
        work = partial(_feed_call, "by_hash", keys, root_keys, self._rejected)
        records = await loop.run_in_executor(self._lookups.executor, self._lookups.call, work)
        if records:
            self._take("keys", records)
            self._dirty.set()
        found = {each.hash for each in records if isinstance(each, KeyRecord)}
        found_root = {each.hash for each in records if isinstance(each, RootKey)}
        lapses = time.monotonic() + ABSENT_SECONDS
        for digest in keys:
            if digest not in found:
                self._state.absent_keys.put(digest, lapses)
        for digest in root_keys:
            if digest not in found_root:
                self._state.absent_root_keys.put(digest, lapses)

    def _reached(self) -> None:
        if not self.connected:
            log.info("edge.database_reached", edge=self.edge_id)
            self.connected = True

    def _lost(self, error: DatabaseGone) -> None:
        self.counters["polls_failed"] += 1
        if self.connected or self.counters["polls_failed"] == 1:
            log.warning("edge.database_gone", edge=self.edge_id, error=str(error))
        self.connected = False

    def _rejected(self, table: str) -> None:
        self._count(f"rows_rejected_{table}")

    def _count(self, name: str) -> None:
        self.counters[name] += 1

    async def _report_credits(self) -> None:
        while True:
            await asyncio.sleep(REPORT_SECONDS)
            if self.connected:
                with contextlib.suppress(DatabaseGone):
                    await self.wallet.report()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            for callback in self._ticks:
                try:
                    callback()
                except Exception:
                    log.exception("edge.on_tick_failed")

    # The snapshot

    async def _load(self) -> None:
        path = self._folder / "snapshot"
        loop = asyncio.get_running_loop()
        try:
            applied, records = await loop.run_in_executor(self._writer, disk.read, path)
        except FileNotFoundError:
            return
        except (disk.SnapshotDamaged, OSError) as error:
            aside = path.with_name(f"snapshot.damaged-{clock.now_ms()}")
            log.error("edge.snapshot_damaged", path=str(path), set_aside=aside.name, error=str(error))
            self.counters["snapshots_damaged"] += 1
            with contextlib.suppress(OSError):
                path.rename(aside)
            return
        if any(isinstance(record, SealedCertificate) for record in records):
            await loop.run_in_executor(self._writer, _configure)
        self._take("snapshot", records)
        self.applied.update(applied)
        self.ready = True
        log.info("edge.snapshot_loaded", records=len(records))

    async def _keep_snapshot(self) -> None:
        while True:
            await self._dirty.wait()
            await asyncio.sleep(SNAPSHOT_SECONDS)
            started = time.monotonic()
            await self._save()
            await asyncio.sleep((time.monotonic() - started) / _SNAPSHOT_SHARE)

    async def _save(self) -> None:
        self._dirty.clear()
        tables: list[Sequence[Record]] = [*self._state.tables(), list(self._sealed.values())]
        applied = dict(self.applied)
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._writer, disk.write, self._folder / "snapshot", applied, tables)
        except OSError as error:
            log.error("edge.snapshot_not_written", error=str(error))
            self.counters["snapshots_failed"] += 1
            self._dirty.set()


class _Bank:
    """Leasing by the database, in a thread of its own; what is asked for at once is one transaction."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._wishes: list[tuple[Wish, asyncio.Future[Granted]]] = []
        self._leasing: asyncio.Task[None] | None = None

    async def lease(self, wish: Wish) -> Granted:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Granted] = loop.create_future()
        self._wishes.append((wish, future))
        if self._leasing is None:
            self._leasing = loop.create_task(self._lease_all())
        return await future

    async def _lease_all(self) -> None:
        try:
            while self._wishes:
                batch, self._wishes = self._wishes[:_WISHES_AT_ONCE], self._wishes[_WISHES_AT_ONCE:]
                try:
                    grants = await self._store._bank(partial(_lease, self._store.edge_id, batch))
                except Exception as error:
                    if isinstance(error, DatabaseGone):
                        # Nobody else would fare better: they are not made to wait for the same.
                        batch, self._wishes = [*batch, *self._wishes], []
                    for _, future in batch:
                        if not future.done():
                            future.set_exception(error)
                else:
                    for (_, future), grant in zip(batch, grants, strict=True):
                        if not future.done():
                            future.set_result(grant)
        finally:
            self._leasing = None

    async def report(self, spent: Mapping[str, int]) -> set[str]:
        def work() -> set[str]:
            from apps.keys import credits

            return credits.report_spent(self._store.edge_id, spent)

        return await self._store._bank(work)

    async def give_back(self, spent: Mapping[str, int]) -> Mapping[str, tuple[int, int | None]]:
        def work() -> Mapping[str, tuple[int, int | None]]:
            from apps.keys import credits

            return credits.give_back(self._store.edge_id, spent)

        return await self._store._bank(work)


def _lease(edge_id: str, batch: Sequence[tuple[Wish, object]]) -> "list[Grant]":
    from apps.keys import credits
    from edge.store import feed

    wishes = [credits.Wish(*msgspec.structs.astuple(wish)) for wish, _ in batch]
    return credits.lease(edge_id, wishes, edges=feed.live_edges())


def _configure() -> None:
    """Set Django up; it needs no database for that."""
    import os

    import django
    from django.apps import apps

    if not apps.ready:
        os.environ.setdefault("DJANGO_SETTINGS_MODULE", "unkey.settings")
        django.setup()


def _left_again() -> Fault:
    # Found or known to be absent, and pushed out of memory before its reader had his turn.
    return ServiceUnavailable("This key could not be looked up at the moment; try again.")


def _feed_call(name: str, *args: Any) -> Any:
    from edge.store import feed

    return getattr(feed, name)(*args)


def _shard_of(workspace_id: str) -> int:
    from apps.workspaces.models import shard_of

    return shard_of(workspace_id)

"""The engine's worker for one network: rows of any number of requests, batched forward by forward.

Knows requests as rows of token ids with outputs wanted at their end; what is done with the outputs is the request's own
business (`language.py`, `classifier.py`). Rows join and leave between forwards; a request is admitted when its worst
case fits beside those running, and refused at once if it could never fit.
"""

from __future__ import annotations

import logging
import traceback
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from alignstar.engine import Request
from alignstar.errors import EngineError, PromptError
from alignstar.models.hf.network import Network, out_of_memory
from alignstar.models.hf.paged import PagedRow, Pool
from alignstar.models.hf.prefix import Lease, PrefixCache

log = logging.getLogger("alignstar")

T = TypeVar("T")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Served(Generic[T]):
    """An answer with what it took: positions `computed`, forwards (`calls`), most KV positions `held` meanwhile.

    `discarded` are positions computed for guesses that were wrong.
    """

    value: T
    computed: int
    calls: int
    held: int
    discarded: int = 0


@dataclass(slots=True, eq=False)
class Row:
    """One sequence being computed. Everything in `ids` beyond the lease's slots is still to be pushed.

    `want` is how many last positions' outputs are needed, `limit` how many cached positions may stand in for computing.
    The last `guessed` ids are guesses.
    """

    request: RowRequest[Any]
    ids: list[int]
    want: int = 1
    limit: int = 0
    guessed: int = 0
    lease: Lease | None = None
    served: int = 0
    pushed: int = 0  # by the last forward
    notes: dict[int, object] = field(default_factory=dict[int, object])
    state: Any = None

    @property
    def pending(self) -> int:
        """Tokens still to be pushed; without reuse every forward pushes them all, so none are left after it."""
        return len(self.ids) - len(self.lease.slots) if self.lease else 0


class RowRequest(Request[Served[T]]):
    """A request made of rows. `worst` is the most new KV positions it may need, its prefix included."""

    worst: int = 0

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[Row] = []
        self.reserved = 0
        self.computed = 0
        self.discarded = 0
        self.calls = 0
        self.held = 0
        self.arrived = 0

    def begin(self, worker: RowWorker) -> None:
        """Make the rows with `worker.add`, or answer at once."""
        raise NotImplementedError

    def advance(self, worker: RowWorker, row: Row, outputs: Any, index: int) -> None:
        """A forward gave outputs for `row` (its `index` in the batch): extend it, or finish it with `worker.finish`."""
        raise NotImplementedError

    def guess(self, row: Row, count: int) -> Sequence[int]:
        """At most `count` ids that may follow the row's; where they do, its next forward is worth several."""
        return ()

    def answer(self, value: T) -> None:
        """Resolve with the accounting."""
        self.resolve(self.served(value))

    def served(self, value: V) -> Served[V]:
        """A value with the accounting so far."""
        return Served(value, self.computed, self.calls, self.held, self.discarded)


class RowWorker:
    """Schedules rows over one network; the engine's Worker protocol."""

    def __init__(
        self,
        network: Network,
        *,
        kv_capacity: int,
        max_tokens: int = 2048,
        max_keys: int = 1 << 18,
        read: Any = None,
        guesses: bool = True,
    ) -> None:
        self.network = network
        self.capacity = kv_capacity
        self.max_tokens = max_tokens  # pushed in one forward, padding included
        self.max_keys = max_keys  # gathered in one forward, padding included
        self.read = read  # [B, want, ...] tensor -> what requests' `advance` is given
        self.queries = network.queries if guesses else 1
        self.cache = PrefixCache(Pool(kv_capacity, network.device)) if network.reuse else None
        self.waiting: deque[RowRequest[Any]] = deque()
        self.running: list[RowRequest[Any]] = []
        self.tick = 0
        self.forwards = 0
        self.pushed = 0

    @property
    def name(self) -> str:
        """The network's name."""
        return self.network.name

    # --- the engine's side -------------------------------------------------------------------------------------------

    def accept(self, request: RowRequest[Any], tick: int) -> None:
        """Queue a request; PromptError if it could never fit."""
        if self.cache is not None and request.worst > self.capacity:
            raise PromptError(
                f"The request needs {request.worst} KV positions of {self.name}, at most {self.capacity} may be held; "
                "shorten the prompt, draw fewer or shorter continuations, or raise kv_tokens."
            )
        request.arrived = tick
        self.waiting.append(request)

    def waiting_since(self) -> int | None:
        """See engine.Worker."""
        served = [row.served for request in self.running for row in request.rows]
        if self.waiting:
            served.append(self.waiting[0].arrived)
        return min(served, default=None)

    def abandon(self, error: BaseException) -> None:
        """See engine.Worker."""
        for request in [*self.running, *self.waiting]:
            self._end(request)
            request.fail(error)
        self.running.clear()
        self.waiting.clear()

    def step(self, tick: int) -> None:
        """Drop the cancelled, admit what fits, run one forward, hand out its results."""
        self.tick = tick
        self._drop_cancelled()
        self._admit()
        batch = self._batch()
        if batch:
            self._run(batch)

    def _run(self, batch: list[Row]) -> None:
        """One forward and what its requests make of it; if it fails, smaller ones, or one for each request."""
        try:
            outputs = self._forward(batch, max(row.want for row in batch))
        except Exception as error:  # noqa: BLE001 - the request whose rows make a forward fail, fails, and no other
            self._take_back(batch)
            requests = list({id(row.request): row.request for row in batch}.values())
            if out_of_memory(error):
                traceback.clear_frames(error.__traceback__)  # what the forward held is free
                if self._shrink(batch):
                    return
            if len(requests) > 1:
                for request in requests:
                    self._run([row for row in batch if row.request is request])
                return
            failure = EngineError(f"A forward of {self.name} failed: {error}.")
            failure.__cause__ = error
            self._fail(requests, failure)
            return
        for index, row in enumerate(batch):
            if outputs is None or row.pending or row.request not in self.running:
                continue
            try:
                row.request.advance(self, row, outputs, index)
            except Exception as error:  # noqa: BLE001 - what one request makes of its outputs is its own failure
                self._fail([row.request], error)

    # --- the requests' side ------------------------------------------------------------------------------------------

    def add(self, request: RowRequest[Any], ids: Sequence[int], *, want: int = 1, state: Any = None) -> Row:
        """A new row of a request. Positions that others computed are reused, but for the last `want` ones."""
        row = Row(request, list(ids), want=want, limit=len(ids) - want, served=request.arrived, state=state)
        if self.cache is not None:
            row.lease = self.cache.lease(tuple(ids), row.limit)
            request.reserved -= len(row.lease.slots)
        request.rows.append(row)
        return row

    def fork(self, row: Row, state: Any) -> Row:
        """A sibling of a row whose positions are all published."""
        twin = Row(row.request, list(row.ids), served=self.tick, state=state)
        if self.cache is not None:
            assert row.lease is not None
            twin.lease = self.cache.fork(row.lease)
        row.request.rows.append(twin)
        return twin

    def retract(self, row: Row, count: int) -> None:
        """Take back the row's last `count` ids, guesses that were wrong; all the others were right."""
        row.guessed, row.want = 0, 1
        if count:
            assert self.cache is not None
            assert row.lease is not None
            del row.ids[len(row.ids) - count :]
            self.cache.drop_last(row.lease, count)
            row.request.reserved += count
            row.request.computed -= count
            row.request.discarded += count

    def publish(self, row: Row) -> None:
        """Let everybody use what the row has computed so far."""
        if self.cache is None or row.lease is None:
            return
        if row.lease.own:
            self.cache.publish(row.lease, tuple(row.ids[: len(row.lease.slots)]))
        self.cache.remember(row.lease, row.notes)
        row.notes = {}

    def finish(self, row: Row) -> None:
        """The row is done; what becomes of its positions is the cache's business."""
        self.publish(row)
        if self.cache is not None and row.lease is not None:
            self.cache.most = max(self.cache.most, row.request.computed)
            self.cache.release(row.lease)
        row.request.rows.remove(row)
        if not row.request.rows:
            self._end(row.request)

    # --- inside ------------------------------------------------------------------------------------------------------

    @property
    def kv_in_use(self) -> int:
        """KV positions that running requests need (0 when idle)."""
        return 0 if self.cache is None else self.cache.in_use

    def _end(self, request: RowRequest[Any]) -> None:
        for row in request.rows:
            if self.cache is not None and row.lease is not None:
                self.cache.release(row.lease)
        request.rows.clear()
        request.reserved = 0
        if request in self.running:
            self.running.remove(request)

    def _fail(self, requests: Any, error: BaseException) -> None:
        for request in list(requests):
            self._end(request)
            request.fail(error)

    def _drop_cancelled(self) -> None:
        for request in [r for r in self.running if r.cancelled]:
            self._end(request)
        if any(request.cancelled for request in self.waiting):
            self.waiting = deque(r for r in self.waiting if not r.cancelled)

    def _admit(self) -> None:
        """In order of arrival; a request that does not fit yet holds back those behind it, so that none starves."""
        while self.waiting:
            request = self.waiting[0]
            if self.cache is not None:
                promised = sum(r.reserved for r in self.running)
                if self.running and self.cache.room() - promised < request.worst:
                    return
                request.reserved = request.worst
            self.waiting.popleft()
            self.running.append(request)
            try:
                request.begin(self)
            except Exception as error:  # noqa: BLE001 - the error is this request's answer
                self._fail([request], error)
            if not request.rows and request in self.running:
                self._end(request)

    def _batch(self) -> list[Row]:
        """The rows of the next forward: those like the one that has waited longest, within the limits."""
        rows = sorted((row for request in self.running for row in request.rows), key=lambda row: row.served)
        if not rows:
            return []
        first = rows[0]
        if self.cache is None:
            alike = [row for row in rows if len(row.ids) == len(first.ids)]
            return alike[: max(1, self.max_tokens // len(first.ids))]
        decoding = [row for row in rows if row.pending == 1]
        if first.pending == 1:
            return self._decode_batch(decoding)
        # What is to be prefilled may all be waiting for the last position of a row that shares its beginning.
        return self._prefill_batch(rows) or self._decode_batch(decoding)

    def _decode_batch(self, rows: list[Row]) -> list[Row]:
        batch: list[Row] = []
        widest = 0
        for row in rows:
            widest = max(widest, len(row.ids))
            if batch and (len(batch) + 1) * widest > self.max_keys:
                break
            batch.append(row)
        self._guess(batch)
        return batch

    def _guess(self, batch: list[Row]) -> None:
        """Let rows guess on, as far as the forward takes more queries in little more time.

        All rows are padded to the longest guess, so one counts only as far as a third of the rows come along.
        """
        count = self.queries // len(batch) - 1
        if count < 1:
            return
        guesses = [row.request.guess(row, count) for row in batch]
        width = sorted(map(len, guesses), reverse=True)[(len(batch) - 1) // 3]
        for row, guess in zip(batch, guesses, strict=True):
            row.guessed = min(width, len(guess))
            row.ids.extend(guess[:width])
            row.want = 1 + row.guessed

    def _prefill_batch(self, rows: list[Row]) -> list[Row]:
        """Rows to prefill, no two of which would compute the same positions: the second waits for the first's."""
        long = [row for row in rows if row.pending > 1]
        for row in long:
            self._rematch(row)
        claimed = {_claim(row) for row in rows if _begun(row)}
        batch: list[Row] = []
        widest = total = 0
        for row in long:
            pending = min(row.pending, max(self.max_tokens, row.want))
            wider = max(widest, pending)
            padded = (len(batch) + 1) * wider
            shared = _claim(row) in claimed and not _begun(row)
            if shared or (batch and (padded > self.max_tokens or padded > 2 * (total + pending))):
                continue
            claimed.add(_claim(row))
            batch.append(row)
            widest, total = wider, total + pending
        return batch

    def _rematch(self, row: Row) -> None:
        """Take up what others have published since the row was made."""
        assert self.cache is not None
        assert row.lease is not None
        ids = tuple(row.ids)
        if row.lease.own == 0 and self.cache.tree.match(ids, row.limit)[2] > len(row.lease.slots):
            lease = self.cache.lease(ids, row.limit)
            row.request.reserved -= len(lease.slots) - len(row.lease.slots)
            self.cache.release(row.lease)
            row.lease = lease

    def _forward(self, batch: list[Row], want: int) -> Any:
        """Push a batch; None where only a part of a long prefix was pushed and there is nothing to read."""
        self.forwards += 1
        chunk = max(self.max_tokens, want)
        inputs: list[PagedRow] = []
        for request in {id(row.request): row.request for row in batch}.values():
            request.calls += 1
        for row in batch:
            row.pushed = 0
        for row in batch:
            row.served = self.tick
            request = row.request
            if self.cache is None:
                self._account(row, len(row.ids))
                continue
            assert row.lease is not None
            start = len(row.lease.slots)
            # The last chunk must hold every position whose outputs are wanted.
            count = row.pending if row.pending <= chunk else min(chunk, row.pending - row.want)
            self.cache.extend(row.lease, count)
            request.reserved -= count
            self._account(row, count)
            inputs.append(PagedRow(new=tuple(row.ids[start : start + count]), slots=row.lease.slots))
        if self.cache is None:
            return self.read(self.network.plain([tuple(row.ids) for row in batch], want))
        held = self.cache.held
        for row in batch:
            row.request.held = max(row.request.held, held)
        tensor = self.network.paged(self.cache.pool, inputs, min(want, max(len(r.new) for r in inputs)))
        if all(row.pending for row in batch):
            return None
        return self.read(tensor)

    def _account(self, row: Row, count: int) -> None:
        row.pushed = count
        row.request.computed += count
        self.pushed += count

    def _take_back(self, batch: list[Row]) -> None:
        """Leave the rows of a forward that failed as they were before it, but for their guesses."""
        for request in {id(row.request): row.request for row in batch}.values():
            request.calls -= 1
        for row in batch:
            if self.cache is not None and row.lease is not None:
                self.cache.drop_last(row.lease, row.pushed)
                row.request.reserved += row.pushed
            row.request.computed -= row.pushed
            self.pushed -= row.pushed
            if row.guessed:
                del row.ids[len(row.ids) - row.guessed :]
                row.guessed, row.want = 0, 1

    def _shrink(self, batch: list[Row]) -> bool:
        """After a forward for which memory did not suffice: allow half as much.

        False where nothing could be smaller: one row, and of that no more than has to be pushed at once.
        """
        widest, longest = max(row.pushed for row in batch), max(len(row.ids) for row in batch)
        if len(batch) == 1 and (self.cache is None or widest <= batch[0].want):
            return False
        self.max_tokens = max(1, len(batch) * widest // 2)
        self.max_keys = max(1, len(batch) * longest // 2)
        self.queries = 1
        log.warning(
            "%s: out of memory in a forward of %d rows; going on with at most %d tokens and %d positions in one.",
            self.name, len(batch), self.max_tokens, self.max_keys,
        )  # fmt: skip
        if self.cache is not None:
            self.cache.clear()
        self.network.release()
        return True


def _begun(row: Row) -> bool:
    """Whether some of what the row computes is there already, but not yet for others to use."""
    return row.lease is not None and row.lease.own > 0


def _claim(row: Row) -> tuple[int, int]:
    """Where a row's own positions begin; rows that share positions which nobody has published have it in common."""
    assert row.lease is not None
    return id(row.lease.node), row.ids[len(row.lease.slots) - row.lease.own]

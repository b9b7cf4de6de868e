"""Follow the state of a Watchpost observer: a snapshot, then every change once and in order. Needs Python 3.9 and nats-py; copy this
file. `follow.py` beside it is the same as a command.

    nc = await nats.connect("nats://127.0.0.1:4222", max_reconnect_attempts=-1)
    follower = Follower(nc, "cluster")
    async for entry in follower.entries():
        print(entry)               # {"seq", "table", "key", "op", "value"}, {"seq", "type", "body"}, {"snapshot"} or {"gap": {"from", "to"}}
        follower.tables["nodes"]   # the state, this entry included
        save(follower.position)    # Follower(nc, "cluster", position=saved, tables=saved_tables) goes on behind it
"""
import asyncio, contextlib, hashlib, json, re
import nats
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import NotFoundError


class Follower:
    """One partition of an observer."""

    def __init__(self, nc, observer, partition=0, tenant="", position=None, tables=None):
        self.nc, self.js, self.position, self.tables = nc, nc.jetstream(timeout=10), position, tables or {}
        self.due = 0 if position is None else None  # the number before which the last snapshot is still to be taken over
        self.of = lambda kind: f"tenant.{tenant or '_'}.{kind}.{observer}.{partition}"

    async def entries(self):
        """Every entry from the position on (without one: from the last snapshot), for ever."""
        asked = None
        while True:
            async for seq, message in self.messages():
                if seq == 0:
                    yield message
                    continue
                expected = self.position["seq"] + 1
                if seq > expected:
                    if asked != (expected, seq):  # perhaps it was lost on the way here: ask once more
                        asked = (expected, seq)
                        break
                    yield {"gap": {"from": expected, "to": seq - 1}}  # it is gone: the tables are whole again with the next snapshot
                    self.position["seq"], self.due = seq - 1, seq
                    break
                if seq >= expected and message:
                    yield self.take(seq, message)

    async def messages(self):
        """A snapshot that is due, as number 0; deltas and events behind the position, until they stop coming in order."""
        pull = None
        try:
            if self.due is not None:
                snapshot, self.due = await self.load(self.due), None
                if snapshot:
                    yield 0, snapshot
            log = await self.js.find_stream_name_by_subject(self.of("commit"))
            info = await self.js.stream_info(log)
            if self.position.setdefault("life", str(info.created)) != str(info.created) or info.state.last_seq < self.position["log"]:
                raise RuntimeError(f"the log {log} is not the one that was followed: begin anew without a position")
            if 0 < self.position["log"] < info.state.first_seq - 1:  # some of it is gone, perhaps up to the last number
                yield json.loads((await self.last(self.of("snapshot"))).data)["seq"] + 1, None
            filters = [self.of("delta") + ".>", self.of("event") + ".>"]
            config = ConsumerConfig(filter_subjects=filters, ack_policy=AckPolicy.NONE, mem_storage=True, inactive_threshold=60.0,
                                    deliver_policy=DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=self.position["log"] + 1)
            consumer = await self.js.add_consumer(log, config)
            pull = await self.js.pull_subscribe_bind(consumer=consumer.name, stream=log)
            received = 0
            while True:
                try:
                    batch = await pull.fetch(500, timeout=2)
                except asyncio.TimeoutError:
                    info = await pull.consumer_info()  # fails if a restarted server has forgotten the consumer
                    if info.delivered.consumer_seq != received:
                        break  # some was sent into a connection that ended
                    continue
                received += len(batch)
                for message in batch:
                    yield int(message.headers["Watchpost-Seq"]), message
        except (nats.errors.Error, OSError, asyncio.TimeoutError):
            if self.nc.is_closed:
                raise
            await asyncio.sleep(0.2)  # the connection comes back by itself
        finally:
            with contextlib.suppress(nats.errors.Error):
                await pull.unsubscribe() if pull else None

    def take(self, seq, message):
        table, *key = message.subject[len(self.of("delta")) + 1:].split(".")  # "event" is as long as "delta"
        raw = message.data.decode()
        self.position.update(seq=seq, log=message.metadata.sequence.stream)
        if not key:
            return Entry(raw, seq=seq, type=table, body=None)
        key, op = decode_key(key[0]), message.headers["Watchpost-Op"]
        if op == "put":
            self.tables.setdefault(table, {})[key] = json.loads(raw)
        else:
            self.tables.get(table, {}).pop(key, None)
        return Entry(raw or "null", seq=seq, table=table, key=key, op=op, value=None)

    async def load(self, before):
        """Takes over the last snapshot, unless it ends before the number that comes next."""
        for _ in range(10):  # the worker may replace chunks while they are being read
            try:
                message = await self.last(self.of("snapshot"))
            except NotFoundError:  # none yet: the log is read from its beginning
                self.position = self.position or {"seq": 0, "log": 0}
                return None if before else {"snapshot": {"commit": 0, "seq": 0}}
            whole = snapshot = json.loads(message.data)
            if "chunks" in snapshot:
                chunks, subject = [], f"{self.of('chunk')}.{snapshot['slot']}."
                try:
                    for i in range(snapshot["chunks"]):
                        chunks.append((await self.last(subject + str(i))).data)
                except NotFoundError:
                    wrong = f"{subject}{len(chunks)} is missing"
                    continue
                if hashlib.sha256(b"".join(chunks)).hexdigest() != snapshot["sha256"]:
                    wrong = "they have another digest"
                    continue
                whole = json.loads(b"".join(chunks))
            if whole["seq"] + 1 < before:
                return None
            self.tables = {**(whole["tables"] if "tables" in whole else whole["view"]), "_sources": whole["sources"]}
            self.position = {**(self.position or {}), "seq": whole["seq"], "log": int(message.headers["Watchpost-Log-Seq"])}
            return {"snapshot": {"commit": whole["commit"], "seq": whole["seq"]}}
        raise RuntimeError(f"the chunks of the last snapshot do not fit its manifest: {wrong}")

    async def last(self, subject):
        return await self.js.get_last_msg(await self.js.find_stream_name_by_subject(subject), subject)


class Entry(dict):
    """A delta or an event; `line` is its JSON with the value's own bytes, as in its commit."""

    def __init__(self, raw, **fields):
        *head, last = fields
        text = "".join(f'"{name}":{json.dumps(fields[name], ensure_ascii=False)},' for name in head)
        super().__init__(fields, **{last: json.loads(raw)})
        self.line = f'{{{text}"{last}":{raw}}}'


def decode_key(token):
    """The key of a row, from the token that stands for it in a subject and in the bucket."""
    return "" if token == "=" else re.sub(rb"=(..)", lambda m: bytes.fromhex(m[1].decode()), token.encode()).decode()

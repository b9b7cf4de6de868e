import asyncio, json, nats, os
from nats.js.api import ConsumerConfig, DeliverPolicy

async def follow(observer, partition=0):
    server = await nats.connect(os.environ.get("WATCHPOST_NATS", "nats://127.0.0.1:4222"))
    js = server.jetstream()
    last = await js.get_last_msg("SNAPSHOTS", f"tenant._.snapshot.{observer}.{partition}")
    print("state is", json.loads(last.data)["view"])
    after = int(last.headers["Watchpost-Log-Seq"])
    begin = ConsumerConfig(deliver_policy=DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=after + 1)
    log = await js.subscribe(f"tenant._.*.{observer}.{partition}.>", stream="DELTAS", ordered_consumer=True, config=begin)
    async for change in log.messages:
        print(change.headers["Watchpost-Seq"], change.subject, change.data.decode())

asyncio.run(follow("rooms"))

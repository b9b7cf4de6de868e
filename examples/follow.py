import asyncio, json, nats, os

async def follow(observer, partition=0):
    js = (await nats.connect(os.environ.get("WATCHPOST_NATS", "nats://127.0.0.1:4222"))).jetstream()
    last = await js.get_last_msg("SNAPSHOTS", f"tenant._.snapshot.{observer}.{partition}")
    print("state is", json.loads(last.data)["view"])
    begin = nats.js.api.ConsumerConfig(deliver_policy="by_start_sequence", opt_start_seq=int(last.headers["Watchpost-Log-Seq"]) + 1)
    log = await js.subscribe(f"tenant._.*.{observer}.{partition}.>", stream="DELTAS", ordered_consumer=True, config=begin)
    async for change in log.messages:
        print(change.headers["Watchpost-Seq"], change.subject, change.data.decode())

asyncio.run(follow("rooms"))

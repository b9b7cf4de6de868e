"""What a stock key-value client does with the bucket: one JSON line for each answer. Arguments: URL, tenant."""
import asyncio, json, sys
import nats
from nats.js.errors import KeyDeletedError, KeyNotFoundError, NoKeysError, NoStreamResponseError


def say(**what):
    print(json.dumps(what, sort_keys=True))


async def main(url, tenant):
    nc = await nats.connect(url)
    bucket = await nc.jetstream().key_value("state")
    say(get=(await bucket.get(f"{tenant}.o.last.s0")).value.decode())
    try:
        await bucket.get(f"{tenant}.o.last.gone")
    except (KeyDeletedError, KeyNotFoundError) as error:
        say(get_deleted=isinstance(error, KeyNotFoundError))
    # The end of what was there (None) is no sign: nats-py may announce it before the first row, if the rows are quick.
    keys = []
    while len(keys) < 2:
        try:
            keys = sorted(key for key in await bucket.keys() if key.startswith(tenant))
        except NoKeysError:
            await asyncio.sleep(0.1)
    say(keys=keys)
    watch = await bucket.watch(f"{tenant}.o.last.>")
    watched = {}
    while len(watched) < 3:
        if entry := await watch.updates(timeout=30):
            watched[entry.key] = entry.operation or "PUT"
    await watch.stop()
    say(watch=watched)
    try:
        await bucket.delete(f"{tenant}.o.last.s0")
        say(delete="taken")
    except (NoStreamResponseError, nats.errors.NoRespondersError):
        say(delete="refused")
    await nc.close()


asyncio.run(main(*sys.argv[1:]))

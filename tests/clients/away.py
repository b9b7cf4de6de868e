"""Follows an observer on a server that does not answer the first time that it is asked for the last message of a subject."""
import asyncio, json, os, sys
import nats

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../../clients/python"))
from watchpost import Follower


class Shaken(Follower):
    asked = frozenset()

    async def last(self, subject):
        if subject not in self.asked:
            self.asked |= {subject}
            raise nats.errors.TimeoutError
        return await super().last(subject)


async def main(url, tenant, until):
    nc = await nats.connect(url)
    follower = Shaken(nc, "o", tenant=tenant)
    async for entry in follower.entries():
        print(getattr(entry, "line", None) or json.dumps(entry, separators=(",", ":")), flush=True)
        follower.asked = frozenset()
        if follower.position["seq"] >= int(until):
            break
    await nc.close()


asyncio.run(main(*sys.argv[1:]))

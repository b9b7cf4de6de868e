"""Prints what happens to an observer, one JSON line for each entry, with the values' own bytes. Needs watchpost.py beside it.

    python follow.py tail cluster [--partition 0] [--tenant acme] [--nats URL] [--position FILE] [--until SEQ] [--state]
    python follow.py watch cluster [--table nodes] [--tenant acme] [--nats URL]     # what a plain key-value client sees
"""
import argparse, asyncio, json, os, sys
import nats
from watchpost import Entry, Follower, decode_key


async def tail(nc, args):
    saved = json.load(open(args.position)) if args.position and os.path.exists(args.position) else {}
    follower = Follower(nc, args.observer, args.partition, args.tenant, **saved)
    async for entry in follower.entries():
        print(getattr(entry, "line", None) or json.dumps(entry, separators=(",", ":")), flush=True)
        if args.position:
            with open(args.position + ".new", "w") as file:
                json.dump({"position": follower.position, "tables": follower.tables}, file)
            os.replace(args.position + ".new", args.position)
        if args.until and follower.position["seq"] >= args.until:
            break
    if args.state:
        print(json.dumps({"state": follower.tables}, separators=(",", ":"), sort_keys=True, ensure_ascii=False))


async def watch(nc, args):
    bucket = await nc.jetstream().key_value("state")
    async for entry in await bucket.watch(f"{args.tenant or '_'}.{args.observer}.{args.table}.>".replace("*.>", ">")):
        if entry:  # nothing comes once, when all that was there has come
            table, key = entry.key.split(".")[2:]
            print(Entry((entry.value or b"null").decode(), table=table, key=decode_key(key), value=None).line, flush=True)


async def complain(error):
    print(f"follow.py: {error}", file=sys.stderr)


async def main(args):
    nc = await nats.connect(args.nats, max_reconnect_attempts=-1, reconnect_time_wait=0.2, error_cb=complain)
    await {"tail": tail, "watch": watch}[args.what](nc, args)
    await nc.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["tail", "watch"])
    parser.add_argument("observer")
    parser.add_argument("--table", default="*")
    parser.add_argument("--partition", type=int, default=0)
    parser.add_argument("--tenant", default="")
    parser.add_argument("--nats", default="nats://127.0.0.1:4222")
    parser.add_argument("--position", help="a file that keeps position and tables")
    parser.add_argument("--until", type=int, help="stop at this number")
    parser.add_argument("--state", action="store_true", help="print the tables at the end")
    asyncio.run(main(parser.parse_args()))

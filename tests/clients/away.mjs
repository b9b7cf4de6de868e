// Follows an observer on a server that does not answer the first time that it is asked for the last message of a subject.
import { connect } from "../../clients/javascript/vendor/nats-node.mjs";
import { Follower } from "../../clients/javascript/watchpost.mjs";

class Shaken extends Follower {
  asked = new Set();

  async last(subject) {
    if (this.asked.has(subject)) return await super.last(subject);
    this.asked.add(subject);
    throw new Error("timeout");
  }
}

const [url, tenant, until] = process.argv.slice(2);
const nc = await connect({ servers: url });
const follower = new Shaken(nc, "o", { tenant });
for await (const entry of follower.entries()) {
  process.stdout.write(`${entry.line ?? JSON.stringify(entry)}\n`);
  follower.asked.clear();
  if (follower.position.seq >= Number(until)) break;
}
await nc.close();

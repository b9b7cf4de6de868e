// Prints what happens to an observer, one JSON line for each entry, with the values' own bytes. Needs Node 20 and the files beside it.
//
//   node follow.mjs tail cluster [--partition 0] [--tenant acme] [--nats URL] [--position FILE] [--until SEQ] [--state]
//   node follow.mjs watch cluster [--table nodes] [--tenant acme] [--nats URL]     # what a plain key-value client sees
//
// URL is nats://HOST:PORT, or ws://HOST:PORT where Node has WebSocket (22 and newer).
import { existsSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { connect } from "./vendor/nats-node.mjs";
import { wsconnect } from "./vendor/nats.mjs";
import { Follower, watch } from "./watchpost.mjs";

const text = (value) => ({ type: "string", default: value });
const { values: args, positionals: [what, observer] } = parseArgs({
  allowPositionals: true,
  options: {
    partition: text("0"), tenant: text(""), nats: text("nats://127.0.0.1:4222"), table: text("*"),
    position: { type: "string" }, until: { type: "string" }, state: { type: "boolean" },
  },
});
if (!["tail", "watch"].includes(what) || !observer) {
  console.error("usage: node follow.mjs tail|watch OBSERVER [options]; the head of the file lists them");
  process.exit(2);
}
const nc = await (args.nats.startsWith("ws") ? wsconnect : connect)({ servers: args.nats, maxReconnectAttempts: -1, reconnectTimeWait: 200 });
const print = (entry) => process.stdout.write(`${entry.line ?? JSON.stringify(entry)}\n`);
if (what === "watch") {
  for await (const entry of watch(nc, observer, args)) print(entry);
} else {
  const saved = args.position && existsSync(args.position) ? JSON.parse(readFileSync(args.position, "utf8")) : {};
  const follower = new Follower(nc, observer, { ...saved, partition: Number(args.partition), tenant: args.tenant });
  for await (const entry of follower.entries()) {
    print(entry);
    if (args.position) {
      writeFileSync(`${args.position}.new`, JSON.stringify({ position: follower.position, tables: follower.tables }));
      renameSync(`${args.position}.new`, args.position);
    }
    if (args.until && follower.position.seq >= Number(args.until)) break;
  }
  if (args.state) process.stdout.write(`${JSON.stringify({ state: follower.tables })}\n`);
}
await nc.close();

// Follow the state of a Watchpost observer: a snapshot, then every change once and in order. For Node and browsers; copy this file and
// `vendor/nats.mjs`. `follow.mjs` beside it is the same as a command.
//
//   import { wsconnect } from "./vendor/nats.mjs";                  // in Node also: import { connect } from "./vendor/nats-node.mjs"
//   const nc = await wsconnect({ servers: "ws://127.0.0.1:8080", maxReconnectAttempts: -1 });
//   const follower = new Follower(nc, "cluster");
//   for await (const entry of follower.entries()) {
//     console.log(entry);                // {seq, table, key, op, value}, {seq, type, body}, {snapshot} or {gap: {from, to}}
//     follower.tables.nodes;             // the state, this entry included
//     save(follower.position);           // new Follower(nc, "cluster", { position, tables }) goes on behind it
//   }
import { AckPolicy, DeliverPolicy, Kvm, jetstream, jetstreamManager } from "./vendor/nats.mjs";

const pause = (ms) => new Promise((done) => setTimeout(done, ms));

export class Follower {
  // One partition of an observer.
  constructor(nc, observer, { partition = 0, tenant = "", position = null, tables = {} } = {}) {
    Object.assign(this, { nc, position, tables, stopped: false, due: position ? null : 0 }); // before number `due` a snapshot is to be taken over
    this.of = (kind) => `tenant.${tenant || "_"}.${kind}.${observer}.${partition}`;
  }

  // Every entry from the position on (without one: from the last snapshot), until `stopped` is set.
  async *entries() {
    let asked = "";
    while (!this.stopped) {
      for await (const [seq, message] of this.messages()) {
        const expected = this.position.seq + 1;
        if (seq === 0) yield message;
        else if (seq > expected) {
          if (asked !== `${expected} ${seq}`) {
            asked = `${expected} ${seq}`; // perhaps it was lost on the way here: ask once more
            break;
          }
          yield { gap: { from: expected, to: seq - 1 } }; // it is gone: the tables are whole again with the next snapshot
          this.position.seq = seq - 1;
          this.due = seq;
          break;
        } else if (seq === expected && message) yield this.take(seq, message);
      }
    }
  }

  // A snapshot that is due, as number 0; deltas and events behind the position, until they stop coming in order.
  async *messages() {
    let consumer, received = 0;
    try {
      if (this.due !== null) {
        const snapshot = await this.load(this.due);
        this.due = null;
        if (snapshot) yield [0, snapshot];
      }
      const jsm = await jetstreamManager(this.nc, { timeout: 10_000 });
      const log = await jsm.streams.find(this.of("commit"));
      const { state, created } = await jsm.streams.info(log);
      if ((this.position.life ??= created) !== created || state.last_seq < this.position.log) {
        throw new Error(`the log ${log} is not the one that was followed: begin anew without a position`, { cause: "final" });
      }
      if (this.position.log > 0 && state.first_seq > this.position.log + 1) {
        yield [(await this.last(this.of("snapshot"))).json().seq + 1, null]; // some of it is gone, perhaps up to the last number
      }
      const { name } = await jsm.consumers.add(log, {
        filter_subjects: [`${this.of("delta")}.>`, `${this.of("event")}.>`],
        ack_policy: AckPolicy.None,
        deliver_policy: DeliverPolicy.StartSequence,
        opt_start_seq: this.position.log + 1,
        inactive_threshold: 60e9,
        mem_storage: true,
      });
      consumer = await jetstream(this.nc, { timeout: 10_000 }).consumers.get(log, name);
      while (!this.stopped) {
        const before = received;
        for await (const message of await consumer.fetch({ max_messages: 500, expires: 2000 })) {
          received += 1;
          yield [Number(message.headers.get("Watchpost-Seq")), message];
        }
        if (received === before && (await consumer.info()).delivered.consumer_seq !== received) break; // lost on the way; it throws if forgotten
      }
    } catch (error) {
      if (error.cause === "final" || this.nc.isClosed()) throw error;
      await pause(200); // the connection comes back by itself
    } finally {
      consumer?.delete().catch(() => {});
    }
  }

  take(seq, message) {
    const [table, token] = message.subject.slice(this.of("delta").length + 1).split("."); // "event" is as long as "delta"
    const raw = message.string();
    Object.assign(this.position, { seq, log: message.seq });
    if (token === undefined) return entry(raw, { seq, type: table }, "body");
    const [key, op] = [decodeKey(token), message.headers.get("Watchpost-Op")];
    const taken = entry(raw || "null", { seq, table, key, op }, "value");
    if (op === "put") (this.tables[table] ??= {})[key] = taken.value;
    else delete this.tables[table]?.[key];
    return taken;
  }

  // Takes over the last snapshot, unless it ends before the number that comes next.
  async load(before) {
    for (let attempt = 0; attempt < 10; attempt++) { // the worker may replace chunks while they are being read
      const message = await this.last(this.of("snapshot"));
      if (!message) { // none yet: the log is read from its beginning
        this.position ??= { seq: 0, log: 0 };
        return before ? null : { snapshot: { commit: 0, seq: 0 } };
      }
      let whole = message.json();
      if (whole.chunks) {
        const chunks = [];
        for (let i = 0; i < whole.chunks; i++) chunks.push(await this.last(`${this.of("chunk")}.${whole.slot}.${i}`));
        const joined = new Uint8Array(await new Blob(chunks.map((chunk) => chunk?.data ?? "")).arrayBuffer());
        const commit = String(whole.commit);
        if (joined.length !== whole.bytes || chunks.some((chunk) => chunk?.header.get("Watchpost-Commit") !== commit)) continue;
        // Browsers have no digest on pages that are neither local nor encrypted.
        if (globalThis.crypto?.subtle && hex(await crypto.subtle.digest("SHA-256", joined)) !== whole.sha256) continue;
        whole = JSON.parse(new TextDecoder().decode(joined));
      }
      if (whole.seq + 1 < before) return null;
      this.tables = { ...(whole.tables ?? whole.view), _sources: whole.sources };
      this.position = { ...this.position, seq: whole.seq, log: Number(message.header.get("Watchpost-Log-Seq")) };
      return { snapshot: { commit: whole.commit, seq: whole.seq } };
    }
    throw new Error("the chunks of the last snapshot do not fit its manifest", { cause: "final" });
  }

  async last(subject) {
    const jsm = await jetstreamManager(this.nc, { timeout: 10_000 });
    return await jsm.streams.getMessage(await jsm.streams.find(subject), { last_by_subj: subject });
  }
}

// What a plain key-value client sees: {table, key, value}, with null for a deletion.
export async function* watch(nc, observer, { table = "*", tenant = "" } = {}) {
  const bucket = await new Kvm(nc).open("state");
  const key = `${tenant || "_"}.${observer}.${table === "*" ? "" : `${table}.`}>`;
  for await (const found of await bucket.watch({ key })) {
    const [, , name, token] = found.key.split(".");
    yield entry(found.operation === "PUT" ? found.string() : "null", { table: name, key: decodeKey(token) }, "value");
  }
}

// The key of a row, from the token that stands for it in a subject and in the bucket.
const decodeKey = (token) => (token === "=" ? "" : decodeURIComponent(token.replaceAll("=", "%")));
const hex = (bytes) => Array.from(new Uint8Array(bytes), (byte) => byte.toString(16).padStart(2, "0")).join("");

// `line` is the JSON of a delta or an event with the value's own bytes, as in its commit.
function entry(raw, fields, last) {
  const made = { ...fields, [last]: JSON.parse(raw) };
  return Object.defineProperty(made, "line", { value: `${JSON.stringify(fields).slice(0, -1)},"${last}":${raw}}` });
}

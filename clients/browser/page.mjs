// The page: what the follower knows, drawn anew at most once per frame.
import { html, render } from "./vendor/htm-preact.mjs";
import { wsconnect } from "../javascript/vendor/nats.mjs";
import { Follower } from "../javascript/watchpost.mjs";

const ask = new URLSearchParams(location.search);
const [url, observer] = [ask.get("nats") ?? `ws://${location.hostname || "localhost"}:8080`, ask.get("observer") ?? ""];
const options = { partition: Number(ask.get("partition") ?? 0), tenant: ask.get("tenant") ?? "" };

// Rows, events and gaps that are shown; the rest is counted.
const ROWS = 200, ENTRIES = 50;
const seen = { state: "connecting", error: "", events: [], gaps: [], changes: 0, fresh: new Map(), follower: null };

const json = (value) => JSON.stringify(value);
const time = (at) => at.toLocaleTimeString([], { hour12: false });

function Rows({ name, rows, fresh }) {
  const keys = Object.keys(rows).sort();
  return html`<section id=${`table-${name}`}>
    <h2>${name} <small>${keys.length} ${keys.length === 1 ? "row" : "rows"}</small></h2>
    <div class="scroll"><table><tbody>
      ${keys.slice(0, ROWS).map((key) => html`<tr key=${`${key} ${fresh.get(key) ?? ""}`} class=${fresh.has(key) ? "fresh" : ""}>
        <td>${key === "" ? html`<i class="quiet">empty key</i>` : key}</td><td><code>${json(rows[key])}</code></td></tr>`)}
    </tbody></table></div>
    ${keys.length > ROWS && html`<p class="quiet">and ${keys.length - ROWS} more</p>`}
  </section>`;
}

function Sources({ rows }) {
  const names = Object.keys(rows).sort();
  return names.length > 0 && html`<h2>Sources <small>${names.length}</small></h2>
    <div class="scroll"><table id="sources"><tbody>${names.slice(0, ROWS).map((name) => {
      const { last_seen, last_error, failures } = rows[name];
      return html`<tr key=${name}><td>${name}</td><td>${last_seen ? `seen ${time(new Date(last_seen))}` : "never seen"}</td>
        <td class=${failures > 0 ? "bad" : "quiet"}>${failures > 0 ? `${failures} × ${last_error?.stage}: ${last_error?.message}` : "no failures"}</td></tr>`;
    })}</tbody></table></div>`;
}

function Page({ state, error, events, gaps, changes, fresh, follower }) {
  const { _sources: sources = {}, ...tables } = follower?.tables ?? {};
  const shown = Object.keys(tables).filter((name) => !name.startsWith("_")).sort();
  return html`
    <header>
      <h1>${options.tenant ? `${options.tenant}:` : ""}${observer}/${options.partition}</h1>
      <span id="state" class=${`state ${state === "live" ? "live" : "down"}`}>${state}</span>
      <span>delta <b id="seq">${follower?.position?.seq ?? 0}</b></span>
      <span class="quiet">${changes} changes since this page was opened, from ${url}</span>
    </header>
    ${error && html`<p class="bad" id="error">${error}</p>`}
    <main>
      <div>${shown.map((name) => html`<${Rows} key=${name} name=${name} rows=${tables[name]} fresh=${fresh.get(name) ?? new Map()} />`)}
        ${shown.length === 0 && html`<p class="quiet">There are no rows yet.</p>`}</div>
      <div>
        ${gaps.length > 0 && html`<h2 class="bad">Gaps <small>${gaps.length}</small></h2>
          <ol id="gaps">${gaps.slice(0, ENTRIES).map(({ gap, at }) => html`<li>${time(at)} deltas ${gap.from} to ${gap.to} are gone</li>`)}</ol>`}
        <h2>Events <small>${events.length}</small></h2>
        <ol id="events">${events.slice(0, ENTRIES).map(({ entry, at }) => html`<li key=${entry.seq}><span class="quiet">${time(at)} · ${entry.seq}</span> <b>${entry.type}</b> <code>${json(entry.body)}</code></li>`)}</ol>
        ${events.length === 0 && html`<p class="quiet">None since this page was opened.</p>`}
        <${Sources} rows=${sources} />
      </div>
    </main>`;
}

let drawn = false;
function draw() {
  if (drawn) return;
  drawn = true;
  requestAnimationFrame(() => {
    drawn = false;
    render(html`<${Page} ...${seen} />`, document.getElementById("page"));
  });
}

function take(entry) {
  const at = new Date();
  if (entry.gap) seen.gaps.unshift({ gap: entry.gap, at });
  if (entry.type) seen.events.unshift({ entry, at });
  seen.events.length = Math.min(seen.events.length, 10 * ENTRIES);
  seen.changes += entry.seq ? 1 : 0;
  if (entry.table) {
    if (!seen.fresh.has(entry.table)) seen.fresh.set(entry.table, new Map());
    seen.fresh.get(entry.table).set(entry.key, entry.seq);
  }
}

try {
  document.getElementById("page").textContent = "";
  draw();
  if (!observer) throw new Error("which observer? add ?observer=NAME to the address of this page");
  const nc = await wsconnect({ servers: url, maxReconnectAttempts: -1, waitOnFirstConnect: true });
  document.title = `${observer} · Watchpost`;
  seen.state = "live";
  (async () => {
    for await (const { type } of nc.status()) {
      if (type === "disconnect") seen.state = "connecting";
      if (type === "reconnect") seen.state = "live";
      draw();
    }
  })();
  seen.follower = new Follower(nc, observer, options);
  for await (const entry of seen.follower.entries()) {
    take(entry);
    draw();
  }
} catch (error) {
  Object.assign(seen, { state: "stopped", error: String(error.message ?? error) });
  draw();
}

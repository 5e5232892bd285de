// One trace: its spans as a waterfall, the chosen span's details with the kernel's part, and what came of its events.

import {
  $, ago, api, ApiError, badge, clock, duration, el, idInPath, jumpBox, links, number, outside, payload, plural, pretty, say,
} from "./nexus.js";

const trace = idInPath();
const TICKS = 5;
const DEPTH_SHOWN_MAX = 12;
const MARKS_MAX = 300;

const state = { spans: [], byId: new Map(), chosen: null, range: null, events: [], invocations: new Map(), text: {} };

// ---- reading OTLP ----

function value(any) {
  if (any === undefined || any === null) return null;
  if ("intValue" in any) return Number(any.intValue);
  if ("arrayValue" in any) return (any.arrayValue.values ?? []).map(value);
  return any.stringValue ?? any.boolValue ?? any.doubleValue ?? any.bytesValue ?? null;
}

const attributes = (list) => new Map((list ?? []).map((kv) => [kv.key, value(kv.value)]));

/** Spans in the order of the waterfall: each under its parent, siblings by their start. */
function read(otlp) {
  const spans = [];
  for (const resource of otlp.resourceSpans ?? []) {
    for (const scope of resource.scopeSpans ?? []) {
      for (const raw of scope.spans ?? []) spans.push(span(raw));
    }
  }
  const first = spans.reduce((least, s) => (s.startNs < least ? s.startNs : least), spans[0]?.startNs ?? 0n);
  for (const s of spans) {
    // Differences are small enough for a number; the times themselves are not.
    s.start = Number(s.startNs - first);
    s.end = s.start + s.took;
    for (const event of s.events) event.at = Number(event.ns - first);
  }
  const ids = new Map(spans.map((s) => [s.id, s]));
  const children = new Map();
  for (const s of spans) {
    const parent = ids.has(s.parent) && s.parent !== s.id ? s.parent : "";
    if (!children.has(parent)) children.set(parent, []);
    children.get(parent).push(s);
  }
  const order = [];
  const shown = new Set();
  const walk = (parent, depth) => {
    const list = (children.get(parent) ?? []).sort((a, b) => a.start - b.start || b.took - a.took);
    for (const s of list) {
      if (shown.has(s.id)) continue;
      shown.add(s.id);
      order.push(Object.assign(s, { depth }));
      walk(s.id, depth + 1);
    }
  };
  walk("", 0);
  // Parents in a circle are not ours, but what is not drawn would be lost.
  for (const s of spans) if (!shown.has(s.id)) order.push(Object.assign(s, { depth: 0 }));
  return order;
}

function span(raw) {
  const startNs = BigInt(raw.startTimeUnixNano);
  const s = {
    id: raw.spanId,
    parent: raw.parentSpanId ?? "",
    name: raw.name,
    kind: ["unspecified", "internal", "server", "client", "producer", "consumer"][raw.kind] ?? String(raw.kind),
    startNs,
    took: Number(BigInt(raw.endTimeUnixNano) - startNs),
    bad: raw.status?.code === 2,
    why: raw.status?.message ?? "",
    attributes: attributes(raw.attributes),
    events: (raw.events ?? []).map((e) => ({ name: e.name, ns: BigInt(e.timeUnixNano), attributes: attributes(e.attributes) })),
  };
  s.invocation = s.attributes.get("faas.invocation_id") ?? null;
  s.look =
    s.invocation ? "invoke"
    : s.kind === "client" ? "client"
    : s.attributes.has("cloudevents.event_id") ? "accept"
    : s.kind === "internal" ? "inner"
    : "deliver";
  return s;
}

/** The event's own span has no length where nobody remembers how long the append took. */
const took = (s) => (s.look === "accept" && s.took === 0 ? null : s.took);

// ---- the waterfall ----

function whole() {
  const end = state.spans.reduce((most, s) => Math.max(most, s.end), 0);
  return { from: 0, to: Math.max(end, 1) };
}

function draw() {
  const range = state.range ?? whole();
  const size = range.to - range.from;
  $("whole").hidden = state.range === null;
  $("scale").replaceChildren(
    ...Array.from({ length: TICKS }, (_, i) => el("span", { text: offset(range.from + (size * i) / (TICKS - 1)) })),
  );
  const focused = document.activeElement?.dataset?.span;
  $("spans").replaceChildren(...state.spans.map((s) => el("li", {}, row(s, range, size))));
  if (focused) buttonOf(focused)?.focus({ preventScroll: true });
}

const offset = (ns) => (ns < 1 ? "0" : duration(Math.round(ns)));
const percent = (n) => `${(n * 100).toFixed(4)}%`;

function row(s, range, size) {
  const lane = el("span", { class: "lane" });
  const from = Math.max(s.start, range.from);
  const to = Math.min(s.end, range.to);
  if (to >= from) {
    const bar = el("i", { class: `bar ${s.bad ? "bad" : s.look}` });
    // A bar at the very end would begin outside of the lane and not be seen.
    bar.style.left = `min(${percent((from - range.from) / size)}, calc(100% - 2px))`;
    bar.style.width = percent((to - from) / size);
    lane.append(bar);
  }
  for (const event of s.events.slice(0, MARKS_MAX)) {
    if (event.at < range.from || event.at > range.to) continue;
    const tick = el("i", { class: "tick", title: `${happening(event)}, after ${offset(event.at - s.start)}` });
    tick.style.left = `min(${percent((event.at - range.from) / size)}, calc(100% - 2px))`;
    lane.append(tick);
  }
  const marks = s.events.length > 0 ? `, ${plural(s.events.length, "mark")}` : "";
  const button = el(
    "button",
    {
      type: "button", class: `span-row ${s.bad ? "bad" : ""}`, data: { span: s.id },
      "aria-pressed": String(s.id === state.chosen),
      "aria-label": `${s.name}, level ${s.depth + 1}, ${duration(took(s))}, begins at ${offset(s.start)}${s.bad ? ", failed" : ""}${marks}`,
      title: s.name,
    },
    el("span", { class: "name" }, s.bad ? "! " : null, outside(s.name)),
    lane,
    el("span", { class: "took", text: duration(took(s)) }),
  );
  button.style.setProperty("--depth", Math.min(s.depth, DEPTH_SHOWN_MAX));
  return button;
}

const happening = (event) =>
  event.name === "syscall"
    ? `${event.attributes.get("syscall.name")} took ${duration(event.attributes.get("duration_ns"))}`
    : event.name;

const buttonOf = (id) => $("spans").querySelector(`[data-span="${CSS.escape(id)}"]`);

function choose(id, { byUser = false } = {}) {
  state.chosen = id;
  for (const button of $("spans").querySelectorAll("[aria-pressed]")) {
    button.setAttribute("aria-pressed", String(button.dataset.span === id));
  }
  showDetails();
  if (!byUser) return;
  history.replaceState(null, "", `#span=${id}`);
  const details = $("details");
  // Side by side there is nothing to go to; one below the other, the details may be far down.
  if (details.getBoundingClientRect().top > window.innerHeight * 0.8) details.scrollIntoView({ block: "start" });
}

/** Up, down, home and end move through the spans. */
function keys(pressed) {
  const all = [...$("spans").querySelectorAll("button")];
  const at = all.indexOf(document.activeElement);
  const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: all.length - 1 }[pressed.key];
  if (at < 0 || to === undefined || !all[to]) return;
  pressed.preventDefault();
  all[to].focus();
}

// ---- details ----

function showDetails() {
  const s = state.byId.get(state.chosen);
  const panel = $("details");
  if (!s) return panel.replaceChildren();
  const open = [...panel.querySelectorAll("details[open]")].map((d) => d.dataset.part);
  const outsideParent = s.parent !== "" && !state.byId.has(s.parent);
  const event = s.attributes.get("cloudevents.event_id");
  panel.replaceChildren(
    el("h2", {}, outside(s.name)),
    s.bad ? el("p", { class: "note bad", text: s.why || "Failed." }) : "",
    el(
      "dl",
      {},
      pair("Took", duration(took(s))),
      pair("Begins", `${offset(s.start)} into the trace`),
      pair("At", clock(new Date(Number(s.startNs / 1000000n)).toISOString())),
      pair("Kind", s.kind),
      pair("Span", outside(s.id)),
      outsideParent ? pair("Parent", el("span", {}, outside(s.parent), " (outside of Nexus)")) : [],
    ),
    el(
      "div",
      { class: "actions" },
      event === undefined ? null : el("a", { class: "button", href: links.replay(event, s.attributes.get("cloudevents.event_source") ?? null) }, "Replay this event…"),
      s.took > 0 ? el("button", { class: "plain", type: "button", on: { click: () => zoom(s) } }, "Zoom to this span") : null,
    ),
    s.invocation ? kernelPart(s) : "",
    s.events.length > 0 ? eventsPart(s, open.includes("marks")) : "",
    attributesPart(s, open.includes("attributes") || !s.invocation),
  );
}

const pair = (term, ...what) => [el("dt", { text: term }), el("dd", {}, ...what)];

function zoom(s) {
  const room = Math.max(s.took * 0.02, 1);
  state.range = { from: Math.max(0, s.start - room), to: s.end + room };
  draw();
}

function attributesPart(s, open) {
  // The system calls' own attributes are in the table already.
  const shown = [...s.attributes].filter(([key]) => !key.startsWith(SYSCALL));
  return el(
    "details",
    { open, data: { part: "attributes" } },
    el("summary", { text: plural(shown.length, "attribute") }),
    el("dl", { class: "attributes" }, shown.map(([key, v]) => pair(key, outside(v === null ? "" : String(v))))),
  );
}

function eventsPart(s, open) {
  const line = (event) =>
    el(
      "tr",
      {},
      el("td", { class: "number", text: offset(event.at - s.start) }),
      el("td", {}, outside(event.attributes.get("syscall.name") ?? event.name)),
      el("td", { class: "number", text: duration(event.attributes.get("duration_ns")) }),
      el("td", { class: "number" }, outside(String(event.attributes.get("syscall.ret") ?? ""))),
    );
  return el(
    "details",
    { open: open || s.events.length <= 10, data: { part: "marks" } },
    el("summary", { text: plural(s.events.length, "slow system call") }),
    el(
      "div",
      { class: "scroll" },
      el(
        "table",
        {},
        el("thead", {}, el("tr", {}, heading("After", true), heading("Call"), heading("Took", true), heading("Returned", true))),
        el("tbody", {}, s.events.map(line)),
      ),
    ),
  );
}

const heading = (text, isNumber = false) => el("th", { scope: "col", class: isNumber ? "number" : null, text });

// ---- the kernel's part ----

/** What is counted by name, the longest first: attributes `PREFIXNAME.what`. */
function counted(s, prefix) {
  const calls = new Map();
  for (const [key, v] of s.attributes) {
    if (!key.startsWith(prefix)) continue;
    const dot = key.lastIndexOf(".");
    const name = key.slice(prefix.length, dot);
    if (!calls.has(name)) calls.set(name, { name });
    calls.get(name)[key.slice(dot + 1)] = v;
  }
  return [...calls.values()].sort((a, b) => (b.time_ns ?? 0) - (a.time_ns ?? 0));
}

function kernelPart(s) {
  const get = (name) => s.attributes.get(name);
  const mode = get("nexus.kernel.mode");
  const title = el("h3", { text: "What the kernel did for it" });
  if (mode === undefined) return el("div", {}, title, el("p", { class: "note", text: "Unknown: the span says nothing of the kernel." }));
  if (mode === "off") {
    const reason = get("nexus.kernel.reason") ?? "no reason is given";
    return el("div", {}, title, el("p", { class: "note" }, "Unknown: the kernel was not watched. Why: ", outside(reason)));
  }
  const complete = get("nexus.kernel.complete");
  const part = (label, name) => (get(name) === undefined ? [] : pair(label, duration(get(name))));
  const reason = get("nexus.kernel.reason");
  const facts = el(
    "dl",
    {},
    pair("Watched", mode === "full" ? "fully" : mode === "counts" ? "system calls only" : mode),
    pair("Complete", complete === undefined ? "unknown" : complete ? "yes" : "no, something was missed"),
    pair("Records lost", number(get("nexus.kernel.lost"))),
    pair("On a CPU", duration(get("nexus.time.on_cpu_ns"))),
    part("… of it in its own code", "nexus.time.guest_ns"),
    part("… of it in the kernel", "nexus.time.system_ns"),
    pair("Waiting for a CPU", duration(get("nexus.time.run_queue_ns"))),
    pair("Blocked", duration(get("nexus.time.off_cpu_ns"))),
    part("… of it in page faults", "nexus.time.page_fault_off_cpu_ns"),
    part("… of it for disks", "nexus.time.io_wait_ns"),
    part("Awaiting", "nexus.time.waiting_ns"),
    part("Not explained", "nexus.time.residual_ns"),
    get("nexus.kernel.page_faults.minor") === undefined
      ? []
      : pair("Page faults", `${number(get("nexus.kernel.page_faults.minor"))} minor, ${number(get("nexus.kernel.page_faults.major"))} major`),
    get("nexus.kernel.context_switches") === undefined
      ? []
      : pair("Context switches", `${number(get("nexus.kernel.context_switches"))}, ${number(get("nexus.kernel.migrations"))} to another CPU`),
  );
  return el(
    "div",
    {},
    title,
    complete === false ? el("p", { class: "note warn", text: "The account is not complete: treat the numbers as at least." }) : null,
    reason ? el("p", { class: "note" }, outside(reason)) : null,
    facts,
    callsTable(s, get("nexus.kernel.syscalls.count")),
    importsTable(s),
  );
}

/** Which import of the function made system calls, and how many. */
function importsTable(s) {
  const imports = counted(s, "nexus.kernel.import.");
  if (imports.length === 0) return null;
  const line = (i) =>
    el("tr", {}, el("td", {}, outside(i.name)), el("td", { class: "number", text: number(i.count) }), el("td", { class: "number", text: duration(i.time_ns) }));
  return el(
    "table",
    { class: "imports" },
    el("thead", {}, el("tr", {}, heading("Import"), heading("System calls", true), heading("Time", true))),
    el("tbody", {}, ...imports.map(line)),
  );
}

function callsTable(s, count) {
  const calls = counted(s, "nexus.kernel.syscall.");
  if (calls.length === 0) {
    const text = count === undefined ? "System calls: unknown." : count === 0 ? "It made no system calls." : "System calls are not told by name.";
    return el("p", { class: "dim", text });
  }
  const most = Math.max(...calls.map((c) => c.time_ns ?? 0), 1);
  const sum = (what) => calls.reduce((total, c) => total + (c[what] ?? 0), 0);
  const line = (c) => {
    const share = el("i");
    share.style.width = percent((c.time_ns ?? 0) / most);
    return el(
      "tr",
      {},
      el("td", { class: "share" }, outside(c.name), share),
      el("td", { class: "number", text: number(c.count) }),
      // The span leaves the number of errors out where there were none.
      el("td", { class: "number", text: number(c.errors ?? 0) }),
      el("td", { class: "number", text: duration(c.time_ns) }),
      el("td", { class: "number", text: duration(c.max_ns) }),
    );
  };
  return el(
    "div",
    { class: "scroll" },
    el(
      "table",
      {},
      el("caption", { class: "away", text: "System calls by the time that they took" }),
      el("thead", {}, el("tr", {}, heading("System call"), heading("Calls", true), heading("Errors", true), heading("Time", true), heading("Longest", true))),
      el("tbody", {}, calls.map(line)),
      el(
        "tfoot",
        {},
        el("tr", { class: "dim" }, el("td", { text: "all" }), ...["count", "errors"].map((w) => el("td", { class: "number", text: number(sum(w)) })), el("td", { class: "number", text: duration(sum("time_ns")) }), el("td")),
      ),
    ),
  );
}

// ---- the events ----

function showEvents() {
  const open = new Set([...$("events").querySelectorAll("details[open]")].map((d) => d.dataset.part));
  const closed = new Set([...$("events").querySelectorAll("details:not([open])")].map((d) => d.dataset.part));
  const oldest = [...state.events].sort((a, b) => a.seq - b.seq);
  $("events").replaceChildren(...oldest.map(eventPart));
  for (const d of $("events").querySelectorAll("details")) {
    if (open.has(d.dataset.part)) d.open = true;
    if (closed.has(d.dataset.part)) d.open = false;
  }
}

function eventPart(item) {
  const { event } = item;
  return el(
    "article",
    { class: "happening" },
    el(
      "div",
      { class: "head" },
      badge(item.status),
      el("strong", {}, outside(event.type)),
      el("span", { class: "dim" }, "from ", outside(event.source)),
      el("a", { class: "side", href: links.replay(event.id, event.source) }, "Replay…"),
    ),
    el(
      "dl",
      {},
      pair("Id", outside(event.id)),
      event.subject ? pair("Subject", outside(event.subject)) : [],
      pair("Received", clock(item.received_at), el("span", { class: "dim" }, " (", ago(item.received_at), ")")),
      pair("Place in the log", number(item.seq)),
      item.cause ? pair("Emitted by", causeLink(item.cause)) : [],
      item.target ? pair("Addressed to", outside(item.target)) : [],
    ),
    folded(`data ${item.seq}`, "Payload", payload(event)),
    item.invocations.length === 0 ? el("p", { class: "dim", text: noRun(item) }) : null,
    item.invocations.map(runPart),
  );
}

function noRun(item) {
  if (item.status === "done") return "No function has a trigger for it.";
  return item.status === "running" ? "It is being delivered now." : "It is not yet delivered.";
}

function causeLink(cause) {
  const go = () => chooseInvocation(cause.invocation_id);
  return el("a", { href: `#invocation=${cause.invocation_id}`, on: { click: go } }, outside(cause.invocation_id));
}

function runPart(run) {
  const bad = run.status !== "ok";
  const replay = run.replay_of !== undefined || run.trigger === "other";
  return el(
    "div",
    { class: `inset ${bad ? "bad" : ""}` },
    el(
      "div",
      { class: "head" },
      badge(run.status),
      el("strong", {}, outside(run.function), ` version ${run.version}`),
      el("span", { class: "dim", text: replay ? "replay" : `attempt ${run.attempt}` }),
      el("span", { class: "dim", text: run.duration_ns > 0 ? duration(run.duration_ns) : "did not run" }),
      run.cold_start ? el("span", { class: "dim", text: `cold start, loaded in ${duration(run.load_ns)}` }) : null,
      el("a", { class: "side", href: `#invocation=${run.invocation_id}`, on: { click: () => chooseInvocation(run.invocation_id) } }, "Its span"),
    ),
    run.error ? el("p", { class: "note bad" }, outside(run.error)) : null,
    run.retry_at ? el("p", { class: "dim" }, "To be tried again at ", clock(run.retry_at), " (", ago(run.retry_at), ")") : null,
    run.emitted.length > 0 ? el("p", {}, `Emitted ${plural(run.emitted.length, "event")}: `, run.emitted.map((id, i) => [i > 0 ? ", " : "", outside(id)])) : null,
    run.host_calls?.length ? el("ul", {}, run.host_calls.map(hostCall)) : null,
    run.host_calls_dropped ? el("p", { class: "note warn", text: `${plural(run.host_calls_dropped, "more call")} refused: it had made as many as it may.` }) : null,
    run.output ? folded(`output ${run.invocation_id}`, outputTitle(run.output), payload(run.output)) : null,
    run.logs?.length ? folded(`logs ${run.invocation_id}`, plural(run.logs.length, "line") + " written", logLines(run), true) : null,
    run.logs_dropped ? el("p", { class: "note warn", text: `${plural(run.logs_dropped, "more line")} found no room and are gone.` }) : null,
  );
}

const hostCall = (call) =>
  el(
    "li",
    {},
    outside(`${call.method} ${call.url}`),
    ` ${call.status ?? "no answer"}, ${duration(call.duration_ns)} `,
    call.error ? el("span", { class: "why" }, outside(call.error)) : null,
  );

function outputTitle(output) {
  const status = output.http_status === undefined ? "Output" : `Answer ${output.http_status}`;
  const cut = output.truncated ? ", cut short here" : "";
  return `${status}: ${plural(output.bytes, "byte")}${output.content_type ? ` of ${output.content_type}` : ""}${cut}`;
}

function logLines(run) {
  const line = (l) => el("span", { class: `log-line ${l.stream === "stderr" ? "stderr" : ""}`, title: `${l.stream}, after ${offset(l.offset_ns)}`, text: l.line || " " });
  return el("pre", { class: "wrap", tabindex: "0" }, run.logs.map(line));
}

const folded = (part, title, what, open = false) =>
  el("details", { open, data: { part } }, el("summary", { text: title }), what);

function chooseInvocation(id) {
  const s = state.spans.find((one) => one.invocation === id);
  if (s) choose(s.id);
  return s !== undefined;
}

// ---- loading ----

async function loadEvents() {
  const items = [];
  let cursor = null;
  do {
    const page = await api(`/v1/events?limit=1000&trace_id=${encodeURIComponent(trace)}${cursor === null ? "" : `&cursor=${cursor}`}`);
    items.push(...page.items);
    cursor = page.next;
  } while (cursor !== null && items.length < 1000);
  return { items, more: cursor !== null };
}

async function load() {
  const asked = await Promise.allSettled([api(`/v1/traces/${encodeURIComponent(trace)}`), loadEvents()]);
  const [spans, events] = asked.map((a) => a.value);
  const failed = asked.map((a) => a.reason);
  for (const error of failed) if (error && !(error instanceof ApiError)) throw error;
  $("loading").hidden = true;
  say($("note"), failed[0]?.message ?? "", "bad");
  if (failed[0] && state.spans.length === 0) return again(failed[0].status === 404 ? null : 5000);
  $("view").hidden = false;
  if (events && changed("events", events)) {
    state.events = events.items;
    state.invocations = new Map(events.items.flatMap((e) => e.invocations.map((run) => [run.invocation_id, run])));
    showEvents();
    say($("events-note"), events.more ? "The trace has more events; the latest thousand are shown." : "", "warn");
  } else if (failed[1]) say($("events-note"), failed[1].message, "bad");
  if (spans && changed("spans", spans)) showSpans(read(spans));
  again(wait());
}

/** How soon something may be different: soon while an event is on its way, later while one waits to be tried again. */
function wait() {
  const any = (...wanted) => state.events.some((e) => wanted.includes(e.status));
  if (any("running", "pending")) return 1000;
  const parked = state.events.some((e) => e.status === "failed" && e.invocations.some((run) => run.retry_at));
  return parked ? 3000 : null;
}

function again(ms) {
  if (ms !== null) setTimeout(() => (document.hidden ? again(ms) : load()), ms);
}

function changed(what, now) {
  const text = pretty(now);
  if (state.text[what] === text) return false;
  state.text[what] = text;
  return true;
}

function showSpans(spans) {
  state.spans = spans;
  state.byId = new Map(spans.map((s) => [s.id, s]));
  const { to } = whole();
  const bad = spans.filter((s) => s.bad && s.invocation).length;
  $("summary").replaceChildren(...[
    `${plural(spans.length, "span")} over ${duration(Math.round(to))}, from `,
    clock(new Date(Number(spans[0].startNs / 1000000n)).toISOString()),
    bad > 0 ? [" ", el("strong", { class: "badge error", text: plural(bad, "failed invocation") })] : "",
  ].flat());
  draw();
  if (!state.byId.has(state.chosen)) chooseAtFirst();
  else showDetails();
}

/** What the address names; else what failed last; else the first invocation: it has the kernel's part. */
function chooseAtFirst() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  if (state.byId.has(wanted.get("span"))) return choose(wanted.get("span"));
  if (wanted.has("invocation") && chooseInvocation(wanted.get("invocation"))) return;
  const runs = state.spans.filter((s) => s.invocation);
  choose((runs.findLast((s) => s.bad) ?? runs[0] ?? state.spans[0]).id);
}

$("trace-id").textContent = trace;
document.title = `Trace ${trace.slice(0, 8)} · Nexus`;
$("spans").addEventListener("click", (clicked) => {
  const id = clicked.target.closest("button")?.dataset.span;
  if (id) choose(id, { byUser: true });
});
$("spans").addEventListener("keydown", keys);
$("whole").addEventListener("click", () => {
  state.range = null;
  draw();
});
window.addEventListener("hashchange", chooseAtFirst);
jumpBox();
load();

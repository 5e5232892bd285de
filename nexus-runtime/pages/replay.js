// Asks before it replays. Opening this page only reads; the button alone acts.

import {
  $, ago, api, badge, clock, duration, el, idInPath, jumpBox, links, number, outside, payload, plural, pretty, resolve, say, sources,
} from "./nexus.js";

const LABELS = { deterministic: "Run it again", live: "Run it again, with side effects" };

const id = idInPath();
const source = new URLSearchParams(location.search).get("source");
const EVENTS_SHOWN = 20;
const LINES_MAX = 600;

let found = null; // what the id means
let traceId = null;

const pair = (term, ...what) => [el("dt", { text: term }), el("dd", {}, ...what)];

const isReplay = (run) => run.replay_of !== undefined || run.trigger === "other";

/** For each function the last delivery that ran: what the server compares a replay with. */
function deliveries(item) {
  const last = new Map();
  for (const run of item.invocations) {
    if (!isReplay(run) && run.status !== "denied") last.set(run.function, run);
  }
  return [...last.values()];
}

// ---- what would be replayed ----

async function begin() {
  $("what").replaceWith(outside(id));
  document.title = `Replay ${id.slice(0, 12)} · Nexus`;
  const running = new URLSearchParams(location.hash.slice(1)).get("run");
  try {
    found = await resolve(id, source);
    traceId = found.trace ?? found.event.trace_id;
    $("back").href = links.trace(traceId, found.invocation ? `#invocation=${found.invocation.invocation_id}` : "");
    await subject();
    if (running !== null) follow(running);
  } catch (error) {
    if (error.status === 409 && Array.isArray(error.problem.sources)) {
      $("note").replaceWith(sources(id, error.problem.sources, links.replay));
    } else say($("note"), error.message, "bad");
  } finally {
    $("loading").hidden = true;
  }
}

async function subject() {
  const functions = new Map((await api("/v1/functions")).items.map((f) => [f.name, f]));
  const events = found.event ? [found.event] : found.events.filter((e) => !e.cause).sort((a, b) => a.seq - b.seq);
  const box = $("subject");
  box.replaceChildren(
    el("h2", { text: found.event ? "The event" : `The ${plural(events.length, "event")} that began this trace` }),
    ...events.slice(0, EVENTS_SHOWN).map((item) => eventPart(item, functions)),
    events.length > EVENTS_SHOWN ? el("p", { class: "dim", text: `And ${number(events.length - EVENTS_SHOWN)} more.` }) : "",
  );
  box.hidden = false;
  const runs = events.flatMap(deliveries);
  const canRun = terms(runs, events, functions);
  $("ask").hidden = false;
  $("go").disabled = !canRun;
}

function eventPart(item, functions) {
  const { event } = item;
  const redacted = event.type === "nexus.http.request" && Array.isArray(event.data?.redacted) ? event.data.redacted : [];
  const runs = deliveries(item);
  return el(
    "article",
    { class: "happening" },
    el("div", { class: "head" }, badge(item.status), el("strong", {}, outside(event.type)), el("span", { class: "dim" }, "from ", outside(event.source))),
    el("dl", {}, pair("Id", outside(event.id)), pair("Received", clock(item.received_at), el("span", { class: "dim" }, " (", ago(item.received_at), ")"))),
    el("details", {}, el("summary", { text: "Payload" }), payload(event)),
    redacted.length > 0
      ? el("p", { class: "note warn" }, "The log does not keep these headers of the request, and an exact replay may leave its course for want of them: ", outside(redacted.join(", ")))
      : null,
    runs.map((run) => runPart(run, functions)),
    found.invocation && isReplay(found.invocation) ? el("p", { class: "dim", text: "You came from a replay of it; what is compared is the run that the event itself had." }) : null,
    runs.length === 0 ? el("p", { class: "note", text: "No function ran on it so far. The replay delivers it to those that have a trigger for it now." }) : null,
  );
}

function runPart(run, functions) {
  const chosen = found.invocation?.invocation_id === run.invocation_id;
  const now = functions.get(run.function);
  return el(
    "div",
    { class: `inset ${run.status === "ok" ? "" : "bad"}` },
    el(
      "div",
      { class: "head" },
      badge(run.status),
      el("strong", {}, outside(run.function), ` version ${run.version}`),
      el("span", { class: "dim", text: `attempt ${run.attempt}, ${duration(run.duration_ns)}` }),
      chosen ? el("span", { class: "dim", text: "the invocation you came from" }) : null,
      el("a", { class: "side", href: links.trace(traceId, `#invocation=${run.invocation_id}`) }, "In its trace"),
    ),
    run.error ? el("p", { class: "note bad" }, outside(run.error)) : null,
    !now ? el("p", { class: "note warn", text: "This function is deployed no more; it cannot run again." }) : null,
    run.output ? el("details", {}, el("summary", { text: "What it gave back" }), payload(run.output)) : null,
    run.emitted.length > 0 ? el("p", { class: "dim", text: `It emitted ${plural(run.emitted.length, "event")}; a live replay emits new ones, an exact one none.` }) : null,
    run.journal?.complete ? null : el("p", { class: "note", text: `It cannot be replayed exactly: ${run.journal?.reason ?? "no journal was written of it"}.` }),
    run.host_calls?.length ? el("p", { class: "dim" }, `It called: `, outside([...new Set(run.host_calls.map((c) => `${c.method} ${c.url}`))].join(", "))) : null,
  );
}

/** Says what pressing the button means, and offers what may be chosen. Returns whether it may be pressed. */
function terms(runs, events, functions) {
  const names = [...new Set(runs.map((run) => run.function))];
  const present = names.filter((name) => functions.has(name));
  const select = el("select", { id: "function", name: "function" });
  if (found.event && present.length !== 1) select.append(el("option", { value: "", text: names.length === 0 ? "every function with a trigger for it" : "every function that it went to" }));
  if (!found.event) select.append(el("option", { value: "", text: "every function that the events went to" }));
  for (const name of found.event ? present : []) {
    const current = functions.get(name).version;
    select.append(el("option", { value: name, text: `${name}, current version ${current}` }));
    for (const version of new Set(runs.filter((r) => r.function === name && r.version !== current && r.version > 0).map((r) => r.version))) {
      select.append(el("option", { value: `${name}@${version}`, text: `${name}, version ${version} that ran` }));
    }
  }
  if (found.invocation && present.includes(found.invocation.function)) select.value = found.invocation.function;
  const mode = el(
    "select",
    { id: "mode", name: "mode" },
    el("option", { value: "deterministic", text: "exactly, from what was recorded" }),
    el("option", { value: "live", text: "live, with its side effects" }),
  );
  mode.onchange = () => { $("go").textContent = LABELS[mode.value]; };
  $("go").textContent = LABELS[mode.value];
  $("terms").replaceChildren(
    el("p", {}, el("strong", { text: "Exactly: " }), "the function is given the recorded answers to all that it asks; nothing goes out, nothing is emitted."),
    el("p", {}, el("strong", { text: "Live: " }), "requests that it makes to the outside are made again, and what it emits is delivered."),
    el("p", { class: "dim", text: "The event's own status does not change: a dead event stays dead, whatever the replay finds. The result is compared with the last run and joins the same trace." }),
    el("p", {}, el("label", {}, "Run ", select), " ", el("label", {}, "how: ", mode)),
  );
  if (names.length > 0 && present.length === 0) say($("ask-note"), "None of the functions that ran is deployed any more, so nothing can run again.", "bad");
  return events.length > 0 && (names.length === 0 || present.length > 0);
}

// ---- acting ----

async function act() {
  const wanted = $("function").value;
  const mode = $("mode").value;
  const request = found.event ? { event_id: found.event.event.id, source: found.event.event.source, mode } : { trace_id: found.trace, mode };
  // Whoever chose it has read what it means.
  if (mode === "live") request.confirm = true;
  if (wanted !== "") request.function = wanted;
  $("go").disabled = true;
  say($("ask-note"), "Starting…");
  try {
    const { replay_id: replay } = await api("/v1/replays", {
      method: "POST",
      headers: { "content-type": "application/json", accept: "application/json" },
      body: JSON.stringify(request),
    });
    say($("ask-note"));
    // Loading this page again shows this replay; it does not start another.
    history.replaceState(null, "", `${location.pathname}${location.search}#run=${replay}`);
    follow(replay, { moved: true });
  } catch (error) {
    $("go").disabled = false;
    say($("ask-note"), `It was not started. ${error.message}`, "bad");
  }
}

let following = 0;

async function follow(replay, { moved = false } = {}) {
  const turn = ++following;
  $("run").hidden = false;
  $("results").replaceChildren();
  $("abort").onclick = () => abort(replay);
  if (moved) $("run-title").focus();
  for (let pause = 100; turn === following; pause = Math.min(pause * 1.5, 2000)) {
    try {
      const view = await api(`/v1/replays/${encodeURIComponent(replay)}`);
      if (turn !== following) return;
      say($("run-note"));
      progress(view);
      if (view.status !== "running" && view.status !== "paused") {
        $("go").disabled = false;
        return;
      }
    } catch (error) {
      if (error.status === 404) {
        $("abort").hidden = true;
        $("progress").hidden = true;
        return say($("run-note"), "The server does not remember this replay any more; its invocations are in the trace.", "warn");
      }
      say($("run-note"), `${error.message} Trying again.`, "bad");
    }
    await new Promise((done) => setTimeout(done, pause));
  }
}

async function abort(replay) {
  try {
    await api(`/v1/replays/${encodeURIComponent(replay)}`, { method: "DELETE" });
  } catch (error) {
    say($("run-note"), error.message, "bad");
  }
}

function progress(view) {
  const going = view.status === "running" || view.status === "paused";
  const tally = [
    badge(view.status),
    ` ${number(view.done)} of ${number(view.total)}`,
    ...["identical", "diverged", "failed", "leaked"].filter((v) => view[v] > 0).flatMap((v) => [" ", badge(v), ` ${number(view[v])}`]),
  ];
  $("run-status").replaceChildren(...tally);
  $("abort").hidden = !going || view.total < 2;
  const bar = $("progress");
  bar.hidden = !going;
  bar.max = Math.max(view.total, 1);
  bar.value = view.done;
  const list = $("results");
  for (const result of view.results.slice(list.children.length)) list.append(resultPart(result));
}

// ---- the result ----

const SAYS = {
  "host call": "It asked the host for something else than was recorded.",
  status: "The status differs.",
  error: "The error differs.",
  output: "The output differs.",
  emitted: "The emitted events differ.",
  logs: "The lines that it wrote differ.",
  memory: "The size of its memory differs.",
};

function words(result) {
  if (result.verdict === "leaked") return `It was to have no side effect, and the kernel saw one: ${result.side_effects}.`;
  if (result.verdict === "failed" && result.invocation_id === null) return result.divergence ?? "It did not run.";
  if (result.divergence) return SAYS[result.divergence] ?? result.divergence;
  if (result.verdict === "failed") return "The function did not end well. It had not run on this event before.";
  if (result.replay_of === null) return "The function ended well. It had not run on this event before, so there is nothing to compare with.";
  if (result.answered !== undefined) return `All is the same, to the bit. ${plural(result.answered, "call")} of the host answered from the journal; side effects: ${result.side_effects}.`;
  return "The same status, output and number of emitted events as before.";
}

function resultPart(result) {
  return el(
    "article",
    { class: "happening" },
    el(
      "div",
      { class: "head" },
      badge(result.verdict),
      el("strong", {}, outside(result.function)),
      el("span", { class: "dim" }, "on event ", outside(result.event_id)),
      result.invocation_id === null ? null : el("a", { class: "side", href: links.trace(traceId, `#invocation=${result.invocation_id}`) }, "The new run in its trace"),
    ),
    el("p", { text: words(result) }),
    result.diff ? diffPart(result.diff) : null,
  );
}

/** Before and after, beside each other; lines that are in one only are marked. */
function diffPart({ before, after }) {
  const [left, right] = [before, after].map((side) => pretty(side).split("\n"));
  const marks = left.length <= LINES_MAX && right.length <= LINES_MAX ? common(left, right) : null;
  const side = (title, lines, same, sign, kind) =>
    el(
      "div",
      {},
      el("h3", { text: title }),
      el(
        "pre",
        { tabindex: "0" },
        lines.map((line, i) => {
          const differs = same !== undefined && !same.has(i);
          return el("span", { class: `row ${differs ? kind : ""}`, text: same === undefined ? line : `${differs ? sign : " "} ${line}` });
        }),
      ),
    );
  return el("div", { class: "diff" }, side("Before", left, marks?.left, "-", "gone"), side("After", right, marks?.right, "+", "new"));
}

/** The lines of a longest common subsequence, by their places on both sides. */
function common(a, b) {
  const width = b.length + 1;
  const best = new Uint16Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      best[i * width + j] = a[i] === b[j] ? best[(i + 1) * width + j + 1] + 1 : Math.max(best[(i + 1) * width + j], best[i * width + j + 1]);
    }
  }
  const same = { left: new Set(), right: new Set() };
  for (let i = 0, j = 0; i < a.length && j < b.length; ) {
    if (a[i] === b[j]) {
      same.left.add(i++);
      same.right.add(j++);
    } else if (best[(i + 1) * width + j] >= best[i * width + j + 1]) i++;
    else j++;
  }
  return same;
}

$("go").addEventListener("click", act);
jumpBox();
begin();

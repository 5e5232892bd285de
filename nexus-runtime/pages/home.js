// The latest events, and the functions that they went to.

import { $, ago, api, badge, clock, duration, el, jumpBox, links, number, outside, plural, say } from "./nexus.js";

const PAGE = 50;
const EVERY_MS = 3000;
const FILTERS = ["status", "type", "source", "function"];

const form = $("filters");
const rows = new Map(); // by seq: {text, row}
let next = null;
let asked = 0; // counts requests, so that a late answer to an old question is dropped
let timer = null;

function query(cursor = null) {
  const given = new URLSearchParams({ limit: PAGE });
  for (const name of FILTERS) {
    const value = form.elements[name].value.trim();
    if (value !== "") given.set(name, value);
  }
  if (cursor !== null) given.set("cursor", cursor);
  return given;
}

/** Asks for the first page, or for the one after what is shown. */
async function load({ older = false } = {}) {
  const ask = ++asked;
  clearTimeout(timer);
  $("older").disabled = older;
  try {
    const page = await api(`/v1/events?${query(older ? next : null)}`);
    if (ask !== asked) return;
    if (older) next = page.next;
    else merge(page);
    show(page.items);
    say($("note"), rows.size === 0 ? nothing() : "");
    announce();
  } catch (error) {
    if (ask !== asked) return;
    say($("note"), rows.size > 0 ? `${error.message} What is shown may be out of date.` : error.message, "bad");
  } finally {
    if (ask === asked) {
      $("loading").hidden = true;
      $("older").disabled = false;
      schedule();
    }
  }
}

/** What the first page no longer has went out of the filter; where it does not reach what is shown, all begins anew. */
function merge(page) {
  const seqs = page.items.map((item) => item.seq);
  const reaches = page.next === null || seqs.some((seq) => rows.has(seq));
  if (!reaches) rows.clear();
  const lowest = page.next === null ? 0 : Math.min(...seqs);
  for (const seq of rows.keys()) {
    if (seq >= lowest && !seqs.includes(seq)) rows.delete(seq);
  }
  if (rows.size === 0 || page.next === null) next = page.next;
}

/** Only rows that changed are made anew: nothing flickers, and the focus stays. */
function show(items) {
  for (const item of items) {
    const text = JSON.stringify(item);
    if (rows.get(item.seq)?.text !== text) rows.set(item.seq, { text, row: eventRow(item) });
    suggest(item.event);
  }
  const body = $("rows");
  const wanted = [...rows.keys()].sort((a, b) => b - a).map((seq) => rows.get(seq).row);
  const focused = document.activeElement?.closest("tr")?.dataset.seq;
  wanted.forEach((row, index) => {
    if (body.children[index] !== row) body.insertBefore(row, body.children[index] ?? null);
  });
  while (body.children.length > wanted.length) body.lastChild.remove();
  if (focused) body.querySelector(`tr[data-seq="${CSS.escape(focused)}"] a.whole`)?.focus({ preventScroll: true });
}

function announce() {
  $("table").hidden = rows.size === 0;
  $("older").hidden = next === null;
  $("count").textContent = rows.size === 0 ? "" : `${plural(rows.size, "event")} shown, newest first`;
}

const filtered = () => FILTERS.some((name) => form.elements[name].value.trim() !== "");

function nothing() {
  if (!filtered()) return "No events yet. Send one: nexus send --type order.created --data '{\"id\": 1}'";
  return next === null ? "No events match the filter." : "None of the latest events match the filter; older ones may.";
}

function eventRow(item) {
  const { event } = item;
  const bad = item.status === "dead" || item.status === "failed";
  return el(
    "tr",
    { class: bad ? "bad" : null, data: { seq: String(item.seq) } },
    el("td", {}, badge(item.status)),
    el("td", {}, ago(item.received_at), el("div", { class: "dim number" }, clock(item.received_at, { seconds: true }))),
    el(
      "td",
      {},
      el("div", {}, el("a", { class: "whole", href: links.trace(item.trace_id), title: "Show the trace" }, outside(event.type))),
      el("div", { class: "dim" }, outside(event.source), event.subject ? [" · ", outside(event.subject)] : null),
      el("div", { class: "dim" }, outside(event.id)),
    ),
    el("td", {}, results(item)),
  );
}

/** The last delivery to each function: that is what counts for the event's status. */
function results(item) {
  const last = new Map();
  let replays = 0;
  for (const run of item.invocations) {
    if (isReplay(run)) replays += 1;
    else last.set(run.function, run);
  }
  const lines = [...last.values()].map((run) =>
    el(
      "div",
      { class: "run" },
      item.invocations.length > 1 || run.status !== item.status ? badge(run.status) : null,
      el("span", {}, outside(run.function), el("span", { class: "dim", text: ` v${run.version}` })),
      el("span", { class: "dim", text: run.duration_ns > 0 ? duration(run.duration_ns) : "did not run" }),
      run.attempt > 1 ? el("span", { class: "dim", text: `attempt ${run.attempt}` }) : null,
      run.retry_at && item.status === "failed" ? el("span", { class: "dim" }, nextTry(run.retry_at)) : null,
      run.error ? el("span", { class: "why clamp", title: run.error }, outside(run.error)) : null,
    ),
  );
  if (lines.length === 0) {
    const text = item.status === "done" ? "no function wanted it" : item.target ? `for ${item.target}` : "not yet delivered";
    lines.push(el("span", { class: "dim", text }));
  }
  if (replays > 0) lines.push(el("div", { class: "dim", text: plural(replays, "replay") }));
  return lines;
}

const nextTry = (at) => (new Date(at) > new Date() ? ["next try ", ago(at)] : "next try is due");

/** A replay of what never ran has no `replay_of`; its trigger and first attempt tell it apart. */
const isReplay = (run) => run.replay_of !== undefined || run.trigger === "other";

const seen = { types: new Set(), sources: new Set() };

function suggest(event) {
  for (const [list, value] of [["types", event.type], ["sources", event.source]]) {
    if (seen[list].has(value) || seen[list].size >= 200) continue;
    seen[list].add(value);
    $(list).append(el("option", { value }));
  }
}

async function loadFunctions() {
  try {
    const { items } = await api("/v1/functions");
    const chosen = form.elements.function;
    const value = chosen.value || new URLSearchParams(location.search).get("function") || "";
    const names = items.map((f) => f.name);
    if (value !== "" && !names.includes(value)) names.push(value);
    chosen.replaceChildren(el("option", { value: "", text: "any" }), ...names.map((name) => el("option", { value: name, text: name })));
    chosen.value = value;
    $("functions").replaceChildren(...items.map(functionItem));
    say($("functions-note"), items.length === 0 ? "None deployed. Begin with: nexus deploy FILE --name NAME" : "");
  } catch (error) {
    say($("functions-note"), error.message, "bad");
  }
}

function functionItem(f) {
  const only = (clicked) => {
    clicked.preventDefault();
    form.elements.function.value = f.name;
    begin();
  };
  const href = `/?function=${encodeURIComponent(f.name)}`;
  return el(
    "li",
    {},
    el("a", { href, title: "Show its events", on: { click: only } }, outside(f.name)),
    el("span", { class: "dim", text: ` version ${f.version} · ${f.kind}` }),
    f.stats.running > 0 ? [" ", el("span", { class: "badge running", text: `${number(f.stats.running)} running` })] : null,
    el("p", { class: "dim" }, "deployed ", ago(f.created_at)),
    el("p", { class: "dim" }, triggers(f.config.triggers)),
  );
}

function triggers(list) {
  if (list.length === 0) return "no trigger: runs when called by name";
  return list.flatMap((trigger, index) => [
    index > 0 ? " or " : "on ",
    trigger.filters.length === 0 ? "every event" : outside(trigger.filters.map(words).join(" and ")),
  ]);
}

/** A filter in words. */
function words(filter) {
  const [[dialect, body]] = Object.entries(filter);
  const signs = { exact: "=", prefix: "begins with", suffix: "ends with" };
  if (dialect in signs) return Object.entries(body).map(([name, value]) => `${name} ${signs[dialect]} ${value}`).join(" and ");
  if (dialect === "not") return `not (${words(body)})`;
  return `(${body.map(words).join(dialect === "all" ? " and " : " or ")})`;
}

/** A new question: the old answer goes when the new one is there. */
function begin() {
  const url = query();
  url.delete("limit");
  history.replaceState(null, "", url.size > 0 ? `/?${url}` : "/");
  rows.clear();
  next = null;
  load();
}

function schedule() {
  clearTimeout(timer);
  if ($("live").checked && !document.hidden) timer = setTimeout(load, EVERY_MS);
}

function start() {
  const given = new URLSearchParams(location.search);
  for (const name of FILTERS) {
    const value = given.get(name);
    if (value === null) continue;
    if (name === "function") form.elements.function.append(el("option", { value, text: value }));
    form.elements[name].value = value;
  }
  form.addEventListener("submit", (submitted) => {
    submitted.preventDefault();
    begin();
  });
  form.addEventListener("change", (changed) => {
    if (changed.target.name === "status" || changed.target.name === "function") begin();
  });
  form.addEventListener("reset", () => setTimeout(begin));
  $("live").addEventListener("change", () => ($("live").checked ? load() : clearTimeout(timer)));
  $("older").addEventListener("click", () => load({ older: true }));
  document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : schedule()));
  setInterval(() => {
    if ($("live").checked && !document.hidden) loadFunctions();
  }, 5 * EVERY_MS);
  jumpBox();
  loadFunctions();
  load();
}

start();

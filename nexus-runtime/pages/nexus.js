// What the three pages share: elements, requests, times, links.
//
// Events come from anywhere, so everything of theirs is hostile: it reaches a page as text only, never as markup, and
// links are built from our own paths with every part encoded.

/** Makes an element. `props`: `class`, `text`, `on` (handlers), `data`, and plain attributes; null leaves one out. */
export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "class") node.className = value;
    else if (name === "text") node.textContent = value;
    else if (name === "on") for (const [event, handler] of Object.entries(value)) node.addEventListener(event, handler);
    else if (name === "data") Object.assign(node.dataset, value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export const $ = (id) => document.getElementById(id);

// Characters that turn the direction of text, or are none: an id must not look like another one.
const UNSEEN = /[\p{Cc}\u061c\u200b\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]/gu;
const seen = (c) => `\u27e8U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}\u27e9`;

/** Text that came from outside: in a fixed-width font, apart from the text around it, with nothing unseen in it. */
export const outside = (text) => el("bdi", { class: "outside", text: String(text).replace(UNSEEN, seen) });

/** A refusal or failure, in words that can be shown. */
export class ApiError extends Error {
  constructor(message, status = 0, problem = {}) {
    super(message);
    this.status = status;
    this.problem = problem;
  }
}

/** Calls the API. What is not a success is thrown as an `ApiError` with the problem's detail. */
export async function api(path, options = {}) {
  let response;
  let text;
  try {
    response = await fetch(path, { headers: { accept: "application/json" }, ...options });
    text = await response.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached. It may be stopped, or the network between is broken.");
  }
  let body = null;
  try {
    body = text === "" ? null : parse(text);
  } catch {
    if (response.ok) throw new ApiError(`The server's answer to ${path} is not JSON.`, response.status);
  }
  if (response.ok) return body;
  const said = body?.detail ?? body?.title ?? `status ${response.status}`;
  throw new ApiError(sentence(String(said)), response.status, body ?? {});
}

/** JSON with numbers as they were written where this browser can: a payload's 30 digits stay 30 digits. */
function parse(text) {
  if (typeof JSON.rawJSON !== "function") return JSON.parse(text);
  return JSON.parse(text, (_key, value, context) =>
    typeof value === "number" && context?.source !== undefined && String(value) !== context.source
      ? JSON.rawJSON(context.source)
      : value,
  );
}

/** JSON for reading. */
export const pretty = (value) => (typeof value === "string" ? value : (JSON.stringify(value, null, 2) ?? ""));

export const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");

/** A count with its noun. */
export const plural = (n, one, many = `${one}s`) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;

/** Nanoseconds for reading; what is not known says so. */
export function duration(ns) {
  if (ns === null || ns === undefined || Number.isNaN(ns)) return "unknown";
  const units = [[60e9, "min"], [1e9, "s"], [1e6, "ms"], [1e3, "µs"]];
  for (const [size, unit] of units) {
    if (ns >= size) return `${digits(ns / size)} ${unit}`;
  }
  return `${ns} ns`;
}

const digits = (n) => (n >= 100 ? n.toFixed(0) : n >= 10 ? n.toFixed(1) : n.toFixed(2));

export const number = (n) => (n === null || n === undefined ? "unknown" : Number(n).toLocaleString("en"));

const two = (n) => String(n).padStart(2, "0");

/** Local date and time of day to the millisecond. */
export function absolute(date) {
  const day = `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
  const time = `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
  return `${day} ${time}.${String(date.getMilliseconds()).padStart(3, "0")}`;
}

function relative(date) {
  const seconds = (Date.now() - date.getTime()) / 1000;
  const size = Math.abs(seconds);
  const text =
    size < 1 ? "now"
    : size < 60 ? `${Math.floor(size)} s`
    : size < 3600 ? `${Math.floor(size / 60)} min`
    : size < 48 * 3600 ? `${Math.floor(size / 3600)} h ${Math.floor((size % 3600) / 60)} min`
    : `${Math.floor(size / 86400)} days`;
  return text === "now" ? text : seconds < 0 ? `in ${text}` : `${text} ago`;
}

/** A time as a distance that is kept right, with the exact time in its title. */
export function ago(iso) {
  const date = new Date(iso);
  if (Number.isNaN(date.getTime())) return outside(String(iso));
  return el("time", { datetime: iso, title: `${absolute(date)} here, ${iso}`, data: { ago: "" }, text: relative(date) });
}

/** A time as it is on the clock here. */
export function clock(iso, { seconds = false } = {}) {
  const date = new Date(iso);
  if (Number.isNaN(date.getTime())) return outside(String(iso));
  const text = absolute(date);
  return el("time", { datetime: iso, title: iso, text: seconds ? text.slice(0, 19) : text });
}

setInterval(() => {
  for (const node of document.querySelectorAll("time[data-ago]")) {
    const text = relative(new Date(node.dateTime));
    if (node.textContent !== text) node.textContent = text;
  }
}, 1000);

const MARKS = {
  pending: "○", running: "◐", done: "✓", failed: "!", dead: "✕",
  ok: "✓", error: "!", timeout: "!", trap: "!", out_of_memory: "!", denied: "!",
  identical: "✓", diverged: "≠", aborted: "■",
};

/** A status: sign, word and colour, so that none of the three is needed to read it. */
export function badge(status, title = null) {
  const known = Object.hasOwn(MARKS, status);
  return el(
    "span",
    { class: `badge ${known ? status : ""}`, title },
    el("span", { "aria-hidden": "true", text: known ? MARKS[status] : "?" }),
    ` ${String(status).replaceAll("_", " ")}`,
  );
}

const part = encodeURIComponent;

/** The id in this page's path, `/trace/{id}` or `/replay/{id}`. */
export function idInPath() {
  const text = location.pathname.split("/")[2] ?? "";
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // not an encoding: then it is as it is
  }
}

export const links = {
  trace: (trace, anchor = "") => `/trace/${part(trace)}${anchor}`,
  replay: (id, source = null) => `/replay/${part(id)}${source === null ? "" : `?source=${part(source)}`}`,
  event: (id, source = null) => `/v1/events/${part(id)}${source === null ? "" : `?source=${part(source)}`}`,
};

/**
 * What an id means: `{event}`, `{event, invocation}` or `{trace, events}`. Ids of events may look like those of traces,
 * so the event is asked for first. Only reads.
 */
export async function resolve(id, source = null) {
  const found = async (path) => {
    try {
      return await api(path);
    } catch (error) {
      if (error.status === 404 || (error.status === 400 && path !== links.event(id, source))) return null;
      throw error;
    }
  };
  const event = await found(links.event(id, source));
  if (event) return { event };
  if (/^[0-9a-f]{8}(-?[0-9a-f]{4}){3}-?[0-9a-f]{12}$/i.test(id)) {
    const invocation = await found(`/v1/invocations/${part(id)}`);
    if (invocation) {
      const of = await api(links.event(invocation.event_id, invocation.source));
      return { event: of, invocation: invocation.invocation };
    }
  }
  if (/^[0-9a-f]{32}$/.test(id)) {
    const page = await found(`/v1/events?limit=1000&trace_id=${part(id)}`);
    if (page?.items.length) return { trace: id, events: page.items, more: page.next !== null };
  }
  throw new ApiError(`There is no event, invocation or trace ${id}. It may be older than what is kept.`, 404);
}

/** Puts a message where the page has its place for one; nothing takes it away. */
export function say(node, message = "", kind = "info") {
  node.hidden = message === "";
  node.className = `note ${kind}`;
  if (node.textContent !== message) node.textContent = message;
}

/** The sources of an id that several use, as links to the same page. */
export function sources(id, list, href) {
  return el(
    "div",
    {},
    el("p", {}, "Several sources sent an event with the id ", outside(id), ". Which one is meant?"),
    el("ul", {}, list.map((source) => el("li", {}, el("a", { href: href(id, source) }, outside(source))))),
  );
}

/** The payload of an event, or what a function gave back: JSON, text, or base64 that is said to be so. */
export function payload(thing) {
  if (thing?.data !== undefined && thing.data !== null) return el("pre", { tabindex: "0", text: pretty(thing.data) });
  if (typeof thing?.data_base64 === "string") {
    return el(
      "div",
      {},
      el("p", { class: "dim", text: "Not text; shown as base64." }),
      el("pre", { class: "wrap", tabindex: "0", text: thing.data_base64 }),
    );
  }
  return el("p", { class: "dim", text: "Empty." });
}

/** The box in every page's head: any id leads to its trace. */
export function jumpBox() {
  const form = $("jump");
  const input = form.elements.id;
  const note = $("jump-note");
  form.addEventListener("submit", async (submitted) => {
    submitted.preventDefault();
    const id = input.value.trim();
    if (id === "") return;
    say(note, "Looking…");
    try {
      const found = await resolve(id);
      const anchor = found.invocation ? `#invocation=${found.invocation.invocation_id}` : "";
      location.assign(links.trace(found.trace ?? found.event.trace_id, anchor));
    } catch (error) {
      if (error.status === 409 && Array.isArray(error.problem.sources)) {
        say(note, "Several sources use this id; choose the event in the list.");
      } else say(note, error.message, "bad");
    }
  });
}

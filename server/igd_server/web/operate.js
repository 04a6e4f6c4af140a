// The operators' page: reads what is served, and sends commands after a second click, if the key has the scope for it.
import { command, hasKey, overview, servedCatalogues, useKey } from "./api.js";
import { byId, element } from "./dom.js";
import { showCache, showCatalogues, showEvents, showVariants } from "./overview.js";

const AFTER_COMMAND_MS = 15_000; // in which a server follows, and the page reads each second
const COMMANDS = {
  rollback: { label: "Roll back", sure: "Yes, roll back", asks: (name) => `Move ${name} back to the version before, on all servers?` },
  allow: { label: "Allow", sure: "Yes, allow", asks: (name, version) => `Let all servers try ${version} of ${name} again?` },
  reload: { label: "Look at the store now", asks: null },
};

const state = {
  view: null, // what was read last
  shown: "", // the same as text, to leave the page alone while nothing changes
  isOperator: false,
  asking: "", // the id of the command that waits for its second click
  closed: new Set(), // names of folded catalogues
  timer: 0,
  soonUntil: 0,
};

const say = (text) => (byId("announcement").textContent = text);
const idOf = (action, name, version = "") => [action, name, version].filter(Boolean).join(" ");

async function load() {
  clearTimeout(state.timer);
  try {
    await read();
    byId("read-at").textContent = `Read at ${new Date().toLocaleTimeString("en")}`;
    byId("refreshing").hidden = false;
    show();
  } catch (error) {
    if (error.status === 401 || error.status === 403) return askForKey(error);
    problem(error, { isPassing: true });
  }
  const seconds = Date.now() < state.soonUntil ? 1 : Number(byId("every").value);
  if (seconds) state.timer = setTimeout(() => (document.hidden ? again() : load()), seconds * 1000);
}

/** Nobody looks: look later. */
function again() {
  state.timer = setTimeout(() => (document.hidden ? again() : load()), 1000);
}

/** The operators' view, or else what everybody may see. */
async function read() {
  try {
    const before = state.isOperator;
    state.view = await overview();
    state.isOperator = true;
    if (!before) hideLinksToNowhere();
    byId("key-form").hidden = true;
    quiet();
  } catch (error) {
    if (![403, 404].includes(error.status)) throw error;
    state.isOperator = false;
    state.view = await servedCatalogues();
    quiet();
    if (error.status === 403) askForKey(error);
    else note("Commands and click rates are on the operations port, at /operate there.");
  }
}

/** The operations port has this page alone. */
async function hideLinksToNowhere() {
  const { status } = await fetch("compare", { method: "HEAD" });
  if (status === 404) for (const link of document.querySelectorAll("nav .asks")) link.hidden = true;
}

function askForKey({ status, detail }) {
  const why = status === 403 ? "Commands and click rates need a key with the scope admin." : hasKey() ? `The one you gave will not do: ${detail}.` : "This server asks for one: igd keys create --scopes admin.";
  const isNew = byId("key-form").hidden;
  byId("key-note").textContent = `${why} It stays in this tab.`;
  byId("key-form").hidden = false;
  if (isNew && status === 401) byId("key").focus();
}

function show() {
  const text = JSON.stringify([{ ...state.view, request_id: null }, state.isOperator, state.asking]);
  if (text === state.shown) return;
  state.shown = text;
  const focused = document.activeElement?.dataset.command;
  showCatalogues(state.view, { closed: state.closed, onToggle: fold, commandsOf });
  showVariants(state.view);
  showCache(state.view);
  showEvents(state.view);
  byId("served").hidden = false;
  if (focused) document.querySelector(`[data-command="${CSS.escape(focused)}"]`)?.focus();
}

/** The buttons of a catalogue, or of a version that it refused; none without the right to press them. */
function commandsOf(name, refusal) {
  if (!state.isOperator || !state.view.following.includes(name)) return [];
  const version = refusal?.version;
  return [element("div", { class: "commands" }, ...(refusal ? ["allow"] : ["rollback", "reload"]).flatMap((action) => buttonsOf(action, name, version)))];
}

function buttonsOf(action, name, version) {
  const { label, sure, asks } = COMMANDS[action];
  const id = idOf(action, name, version);
  const of = element("span", { class: "unseen" }, ` ${version ?? name}`);
  if (state.asking !== id) {
    return [element("button", { type: "button", "data-command": id, onclick: () => (asks ? ask(id) : run(action, name)) }, label, of)];
  }
  const yes = element("button", { type: "button", class: "sure", "data-command": `yes ${id}`, onclick: () => run(action, name, version) }, sure);
  const no = element("button", { type: "button", onclick: () => ask("", id) }, "Cancel");
  return [element("div", { class: "asking", role: "group", "aria-label": asks(name, version) }, element("p", {}, asks(name, version)), yes, no)];
}

/** Wait for the second click of the command `id`, or for none; the focus stays with it. */
function ask(id, before = "") {
  state.asking = id;
  show();
  document.querySelector(`[data-command="${CSS.escape(id ? `yes ${id}` : before)}"]`)?.focus();
}

async function run(action, name, version) {
  state.asking = "";
  try {
    tell(toldOf(action, await command(name, action, version ? { version } : {})), action);
    state.soonUntil = Date.now() + AFTER_COMMAND_MS;
  } catch (error) {
    problem(error);
    return show();
  }
  await load();
  document.querySelector(`[data-command="${CSS.escape(idOf(action, name, version))}"]`)?.focus();
}

function toldOf(action, { catalogue, version, before, passed_by = [], not_taken }) {
  if (action === "reload") return `This server looks at ${catalogue} in the store now.`;
  if (action === "allow") return `All servers may try ${version} of ${catalogue} again.`;
  const passed = passed_by.map((each) => ` Passed by ${each.version}: ${each.detail}.`).join("");
  return `${catalogue} goes back to ${version}${before ? `, from ${before}` : ""}.${passed}${not_taken ? ` But servers do not take it: ${not_taken}.` : ""}`;
}

/** Something that stays to be read until the next command. */
function tell(text) {
  say(text);
  byId("message").replaceChildren(element("div", { class: "notice" }, element("p", {}, text)));
}

function note(text) {
  byId("message").replaceChildren(element("div", { class: "notice", "data-passing": true }, element("p", {}, text)));
}

/** Take away what no longer holds: an error of the last reading, not what a command said. */
function quiet() {
  byId("message").querySelector("[data-passing]")?.remove();
}

/** An error; of a reading it goes when one succeeds, of a command it stays. */
function problem(error, { isPassing = false } = {}) {
  byId("message").replaceChildren(
    element(
      "div",
      { class: "notice error", role: "alert", "data-passing": isPassing },
      element("strong", {}, error.title ?? "Something went wrong"),
      element("p", {}, error.detail ?? error.message ?? ""),
    ),
  );
}

function fold(name, isOpen) {
  if (isOpen) state.closed.delete(name);
  else state.closed.add(name);
  writeAddress();
}

/** What is folded, and how often the page reads; nothing of it is a secret. */
function writeAddress() {
  const parts = new URLSearchParams([...state.closed].map((name) => ["closed", name]));
  if (byId("every").value !== "0") parts.set("every", byId("every").value);
  const address = parts.size ? `#${parts}` : location.pathname + location.search;
  if (location.hash !== (parts.size ? address : "")) history.replaceState(null, "", address);
}

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  const every = given.get("every") ?? "0";
  byId("every").value = [...byId("every").options].some(({ value }) => value === every) ? every : "0";
  state.closed = new Set(given.getAll("closed"));
  state.shown = "";
}

byId("refreshing").addEventListener("submit", (event) => {
  event.preventDefault();
  load();
});
byId("every").addEventListener("input", () => {
  writeAddress();
  load();
});
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(byId("key").value.trim());
  byId("key").value = "";
  load();
});
addEventListener("hashchange", () => {
  readAddress();
  load();
});
readAddress();
load();

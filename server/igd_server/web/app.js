// The page: a history and settings on one side, what the server makes of them on the other.
import { actionsOf } from "./actions.js";
import { applyAddress, keepUsual, readAddress, writeAddress } from "./address.js";
import { asCurl, findItems, hasKey, recommend, servedCatalogue, useKey } from "./api.js";
import { byId, debounced, element, titled } from "./dom.js";
import { describe, itemOf, knowItems } from "./items.js";
import { answered, named } from "./lists.js";
import { showOthers } from "./others.js";
import { colourTokens, moveFrom, moveTo, showMoves, showRanking, tokenTooltips } from "./ranking.js";
import { sampleUsers } from "./samples.js";
import { searchField } from "./search.js";

const RERANK_AFTER_MS = 180;
const RANGED = ["integer", "number", "date", "datetime"]; // types of values that a range of makes sense
const MOST_KEPT = 48;
const POLL_MS = { first: 1000, most: 5000 };

const state = {
  catalogue: null,
  popular: [], // the most popular items: sample users' histories, and values to filter by
  samples: [], // users to try
  history: [], // items, oldest first
  unknown: [], // ids in the address that the catalogue does not have
  running: null, // AbortController of the request being answered
  step: null, // the address being followed
  starting: null, // promise of the start that goes on
};

const tooltips = tokenTooltips(byId("rankings"));
const say = (text) => (byId("announcement").textContent = text);
const kept = new Map(); // answers to show beside the chosen ones, by version and request
const rankSoon = debounced(rank, RERANK_AFTER_MS);
const control = (id) => Number(byId(id).value);

// ---- Catalogue

/** Begin, or begin again; once at a time, as one form takes one key. */
function start() {
  state.starting ??= begin().finally(() => (state.starting = null)).then(followAddress);
}

async function begin() {
  let wait = POLL_MS.first;
  showPage(false);
  for (;;) {
    try {
      state.catalogue = await servedCatalogue();
      if (state.catalogue) state.popular = await findItems("", 100);
      if (state.catalogue) break;
      showWaiting("The server is starting", "It loads its model and catalogue. This page goes on by itself once it is ready.");
    } catch (problem) {
      if (isAboutKey(problem)) {
        await askForKey(problem);
        continue;
      }
      showWaiting(problem.title ?? "Something went wrong", `${problem.detail ?? problem} Trying again.`);
    }
    await new Promise((resolve) => setTimeout(resolve, wait));
    wait = Math.min(wait * 1.5, POLL_MS.most);
  }
  showPage(true);
  showCatalogue();
}

/** Show what the address says; the first sample user where it says nothing. */
async function followAddress() {
  const { isGiven, ids } = readAddress();
  const step = (state.step = {});
  applyAddress(showValues);
  showSliders();
  if (isGiven) {
    const found = await Promise.all(ids.map((id) => itemOf(state.catalogue.version, id))).catch((error) => fail(error, followAddress));
    if (!found || step !== state.step) return; // failed, or the address is another by now
    state.history = found.filter((item) => item !== null);
    state.unknown = ids.filter((_, index) => found[index] === null);
  } else {
    state.history = state.samples[0]?.history ?? [];
    state.unknown = [];
  }
  showSample();
  showHistory();
  rank();
}

/** The sample user whose history this is, if it is one's. */
function showSample() {
  const ids = (items) => JSON.stringify(items.map((item) => item.item_id));
  const at = state.samples.findIndex(({ history }) => ids(history) === ids(state.history));
  byId("sample").value = at < 0 ? "" : `${at}`;
}

const isAboutKey = ({ status }) => status === 401 || status === 403;

/** Until somebody gives one; whether it will do, the server says. */
async function askForKey({ detail }) {
  const form = byId("key-form");
  byId("waiting").hidden = true;
  form.hidden = false;
  const why = hasKey() ? `The one you gave will not do: ${detail}.` : "Whoever runs it makes one: igd keys create.";
  byId("key-note").textContent = `${why} It stays in this tab.`;
  byId("key").focus();
  await new Promise((resolve) => form.addEventListener("submit", (event) => (event.preventDefault(), resolve()), { once: true }));
  useKey(byId("key").value.trim());
  byId("key").value = "";
  form.hidden = true;
  byId("waiting").hidden = false;
}

function showPage(isReady) {
  for (const id of ["skip", "controls", "results"]) byId(id).hidden = !isReady;
  byId("waiting").hidden = isReady;
}

function showWaiting(title, detail) {
  const waiting = byId("waiting");
  waiting.hidden = false;
  // Written only when it changes: a status that is written again is read out again.
  if (waiting.textContent !== title + detail) waiting.replaceChildren(element("strong", {}, title), element("p", {}, detail));
}

function showCatalogue() {
  const { name, version, items, model, alpha, beams, attributes, scorer } = state.catalogue;
  byId("catalogue").replaceChildren(
    element("strong", {}, name),
    ` ${items.toLocaleString("en")} items`,
    element("span", { class: "detail" }, ` · version ${version} · ${model}`),
  );
  const slider = byId("alpha");
  slider.step = Math.abs(alpha * 20 - Math.round(alpha * 20)) < 1e-9 ? "0.05" : "0.01";
  slider.value = alpha;
  byId("beams").max = Math.max(60, beams);
  byId("beams").value = beams;
  byId("gamma-field").hidden = !scorer;
  byId("own-gamma").checked = true;
  if (scorer) byId("scorer-name").textContent = `${named(scorer.kind)}, the item scorer,`;
  const filterable = attributes.map(({ name: attribute }) => element("option", {}, attribute));
  byId("attribute").replaceChildren(element("option", { value: "" }, "(no filter)"), ...filterable);
  keepUsual();
  knowItems(version, state.popular);
  for (const field of document.querySelectorAll(".filter")) field.hidden = attributes.length === 0;
  state.samples = sampleUsers(state.popular);
  const users = state.samples.map(({ label }, index) => element("option", { value: `${index}` }, label));
  byId("sample").replaceChildren(element("option", { value: "" }, "(pick one)"), ...users);
  byId("next-sample").hidden = users.length < 2;
}

// ---- History

function setHistory(history, { spoken }) {
  state.step = null; // what the address said before comes too late
  state.history = history;
  state.unknown = [];
  writeAddress(history, { isNew: true });
  showSample();
  showHistory();
  byId("said").textContent = spoken;
  rank();
}

function showHistory() {
  const { history, catalogue } = state;
  byId("history").replaceChildren(...history.map(historyItem));
  byId("clear").hidden = history.length === 0;
  const isLong = history.length > catalogue.max_history;
  const order = isLong ? `The model is shown the newest ${catalogue.max_history} at most.` : history.length > 1 ? "Oldest first." : "";
  const unknown = state.unknown.length ? `Not in this catalogue: ${state.unknown.join(", ")}.` : "";
  byId("history-note").textContent = [order, unknown].filter(Boolean).join(" ");
}

function historyItem(item, index) {
  const last = state.history.length - 1;
  const button = (action, sign, label, disabled) =>
    element("button", { type: "button", class: "icon", "data-action": action, "aria-label": label, disabled, onclick: () => act(action, index) },
      element("span", { "aria-hidden": "true" }, sign));
  return element(
    "li",
    {},
    titled(item.title),
    button("up", "↑", `Move ${item.title} up`, index === 0),
    button("down", "↓", `Move ${item.title} down`, index === last),
    button("remove", "×", `Remove ${item.title}`, false),
  );
}

function act(action, index) {
  const history = [...state.history];
  const [item] = history.splice(index, 1);
  const at = { up: index - 1, down: index + 1, remove: Math.min(index, history.length - 1) }[action];
  if (action !== "remove") history.splice(at, 0, item);
  const place = action === "remove" ? "removed" : `is now ${at + 1} of ${history.length}`;
  setHistory(history, { spoken: `${item.title} ${place}.` });
  // The focus stays with what was moved, or goes to what took a removed item's place.
  const buttons = byId("history").children[at]?.querySelectorAll("button:not(:disabled)") ?? [];
  const same = [...buttons].find((button) => button.dataset.action === action);
  (same ?? buttons[0] ?? byId("search")).focus();
}

function pickSample() {
  const sample = state.samples[byId("sample").value];
  if (sample) setHistory(sample.history, { spoken: `${sample.label}: ${sample.history.length} items.` });
}

function pickNextSample() {
  byId("sample").value = `${(Number(byId("sample").value || -1) + 1) % state.samples.length}`;
  pickSample();
}

// ---- Settings

function showSliders() {
  const beams = byId("beams");
  beams.min = control("k");
  byId("alpha-value").textContent = control("alpha").toFixed(2);
  byId("gamma-value").textContent = control("gamma").toFixed(2);
  byId("beams-value").textContent = beams.value;
  byId("decisions-field").hidden = !spellingMayRank();
}

/** Whether tokens without a choice count: mixed with an item scorer they do not, since children are what is scored. */
function spellingMayRank() {
  return !state.catalogue?.scorer || (!byId("own-gamma").checked && control("gamma") === 0);
}

/** The values an attribute has among the popular items. */
function valuesOf(attribute) {
  const values = state.popular.flatMap((item) => item.attributes[attribute] ?? []);
  return [...new Set(values)].sort((a, b) => (a < b ? -1 : 1));
}

function showValues() {
  const attribute = byId("attribute").value;
  byId("value-field").hidden = !attribute;
  byId("value").value = "";
  byId("value").placeholder = attribute && RANGED.includes(valueType(attribute)) ? "one, or from..to" : "";
  byId("values").replaceChildren(...valuesOf(attribute).map((value) => element("option", { value: String(value) })));
}

/** The type of an attribute's values, also of those in a list. */
function valueType(attribute) {
  return state.catalogue.attributes.find(({ name }) => name === attribute).type.replace("list-of-", "");
}

function chosenFilter() {
  const attribute = byId("attribute").value;
  const text = byId("value").value.trim();
  if (!attribute || !text) return {};
  const type = valueType(attribute);
  const value = (written) => {
    if (["integer", "number"].includes(type) && Number.isFinite(Number(written))) return Number(written);
    return type === "boolean" ? written.toLowerCase() === "true" : written;
  };
  if (!RANGED.includes(type) || !text.includes("..")) return { filter: { [attribute]: value(text) } };
  const [from, to] = text.split("..", 2).map((end) => end.trim());
  const range = { ...(from && { gte: value(from) }), ...(to && { lte: value(to) }) };
  return from || to ? { filter: { [attribute]: range } } : {};
}

// ---- Ranking

function requestAt(alpha) {
  const history = state.history.map((item) => item.item_id);
  const forced_weight = byId("decisions").checked && spellingMayRank() ? 0 : 1; // said each time: a variant of the server may have its own
  const k = Math.min(control("k"), state.catalogue.items); // more than there are would be refused
  const gamma = state.catalogue.scorer && !byId("own-gamma").checked ? { gamma: control("gamma") } : {};
  return { history, k, alpha, forced_weight, ...gamma, beams: control("beams"), ...chosenFilter(), ...(byId("tokens").checked && { explain: true }) };
}

/** Gamma as the answer has it: the server's own may depend on the length of the history. */
function showGamma({ gamma }) {
  if (gamma === undefined) return;
  const slider = byId("gamma");
  slider.step = Math.abs(gamma * 20 - Math.round(gamma * 20)) < 1e-9 ? "0.05" : "0.01";
  slider.value = gamma;
  byId("gamma-value").textContent = gamma.toFixed(2);
}

/** An answer to show beside the chosen one; asked for once. */
async function beside(version, body, signal, source = "model") {
  const key = JSON.stringify([version, body]);
  if (!kept.has(key)) {
    kept.set(key, answered(body, source, signal)); // the promise: two who ask at once share it
    if (kept.size > MOST_KEPT) kept.delete(kept.keys().next().value);
  }
  try {
    const answer = await kept.get(key);
    if (answer.version === version) return answer;
  } catch (error) {
    kept.delete(key);
    throw error;
  }
  kept.delete(key);
  throw new Error("The server has a new version by now.");
}

async function rank() {
  state.running?.abort();
  tooltips.hide();
  if (state.history.length === 0) {
    writeAddress([], { isNew: false });
    showMessage("empty", "Nothing to go on yet", ["Add what somebody liked, or pick a sample user: the ranking follows at once."]);
    return;
  }
  const { signal } = (state.running = new AbortController());
  const body = requestAt(control("alpha"));
  writeAddress(state.history, { isNew: false });
  showBusy();
  try {
    const answer = await recommend(body, signal);
    const isRanked = answer.source === "model" && answer.items.length > 0;
    showAnswer(answer, body);
    describe(byId("chosen").querySelector("ol"), answer, signal);
    if (isRanked && body.explain && body.alpha > 0) await compare(answer, { ...body, alpha: 0 }, signal);
    else showBaseline(null);
    const ask = (other, source) => beside(answer.version, other, signal, source);
    byId("popular").hidden = !isRanked;
    byId("others").hidden = !isRanked || !state.catalogue.scorer;
    if (isRanked && !signal.aborted) await showOthers(answer, body, { ...state, ask, signal });
  } catch (error) {
    if (!signal.aborted) await fail(error);
  } finally {
    if (!signal.aborted) byId("results").setAttribute("aria-busy", "false");
  }
}

/** After the answer that was asked for, so that this one finds the prompt in the engine's cache. */
async function compare(answer, body, signal) {
  showBaseline(answer, null, "Ranking…");
  try {
    showBaseline(answer, await beside(answer.version, body, signal));
  } catch (error) {
    if (!signal.aborted) showBaseline(answer, null, error.detail ?? error.message);
    if (isAboutKey(error)) start();
  }
}

/** Say what went wrong; `again` is what the button does. */
async function fail(error, again = rank) {
  const retry = element("button", { type: "button", onclick: () => again() }, "Try again");
  const about = [error.field && `Field: ${error.field}`, error.requestId && `Request: ${error.requestId}`];
  showMessage("error", error.title ?? "Something went wrong", [error.detail ?? String(error), ...about, retry]);
  if (isAboutKey(error)) start();
  // A server that starts again serves nothing for a while; the page waits with it.
  if (error.status === 503 && !(await servedCatalogue().catch(() => state.catalogue))) start();
}

// ---- What the answer side shows

function showMessage(kind, title, lines) {
  const isText = (line) => typeof line === "string";
  const parts = lines.filter(Boolean).map((line) => (isText(line) ? element("p", {}, line) : line));
  const role = kind === "error" ? "alert" : null;
  byId("message").replaceChildren(element("div", { class: `notice ${kind}`, role }, element("strong", {}, title), ...parts));
  byId("answer").hidden = true;
  byId("results").setAttribute("aria-busy", "false");
  if (kind === "empty") say(title);
}

function showBusy() {
  byId("results").setAttribute("aria-busy", "true");
  if (!byId("answer").hidden) return;
  const lines = Array.from({ length: control("k") }, () => element("span", { class: "ghost" }));
  byId("message").replaceChildren(element("div", { class: "ghosts" }, element("p", { class: "note" }, "Ranking…"), ...lines));
}

function showAnswer(answer, body) {
  const { items, source, precomputed, warnings = [] } = answer;
  const byModel = source === "model";
  const lines = warnings.map(({ detail, sample }) => (sample ? `${detail} (${sample.join(", ")})` : detail));
  const other = body.filter ? "Try another value in the filter." : "This catalogue has no title that the history does not have.";
  if (!items.length) showMessage("empty", "No item is left to recommend", [...lines, other]);
  else if (precomputed) showMessage("fallback", `Ranked by the model earlier: ${when(precomputed)}`, lines);
  else if (!byModel) showMessage("fallback", "Ranked by popularity, not by the model", lines);
  else if (lines.length) showMessage("warning", "Passed over", lines);
  else byId("message").replaceChildren();
  byId("answer").hidden = false;
  byId("rankings").hidden = !items.length;
  byId("legend").hidden = !byModel || !items.length || !body.explain;
  const alone = body.forced_weight === 0 ? ", decisions alone" : "";
  const mixed = answer.gamma ? `, gamma ${answer.gamma.toFixed(2)}` : "";
  const how = body.explain ? `Alpha ${body.alpha.toFixed(2)}${mixed}${alone}` : "For this history";
  byId("chosen-heading").textContent = byModel ? how : precomputed ? "Made in advance" : "By popularity";
  byId("baseline-heading").textContent = `Alpha 0${mixed}${alone || (mixed ? "" : ", plain beam search")}`;
  showGamma(answer);
  showRanking(byId("chosen").querySelector("ol"), answer, { actions: (item) => actions(item, answer, body) });
  byId("baseline").querySelector("ol").replaceChildren();
  showScale();
  showFacts(answer);
  byId("curl").textContent = asCurl(body);
  if (items.length) say(`${items.length} items, ranked by ${byModel ? "the model" : precomputed ? "the model, earlier" : "popularity"}. First: ${items[0].title}.`);
}

/** How long ago a list was made. */
function when({ age_s: age }) {
  return age < 7200 ? `${Math.round(age / 60)} minutes ago` : `${Math.round(age / 3600)} hours ago`;
}

/** What can be done with a recommended item: add it, and ask why it is here. */
function actions(item, answer, body) {
  const { signal } = state.running;
  const add = ({ item_id, title }) => setHistory([...state.history, { item_id, title }], { spoken: `${title} added.` });
  const ask = (other) => beside(answer.version, other, signal);
  return actionsOf(item, { answer, body, history: state.history, items: state.catalogue.items, add, ask, say, signal });
}

/** Beside `answer` the ranking at alpha 0, or `note` where there is none; without an answer, no comparison. */
function showBaseline(answer, baseline, note) {
  const section = byId("baseline");
  const list = section.querySelector("ol");
  section.hidden = !answer;
  byId("rankings").classList.toggle("compared", Boolean(answer));
  if (!answer) return;
  if (!baseline) {
    list.replaceChildren(element("li", { class: "note" }, note));
    return;
  }
  showRanking(list, baseline);
  showMoves(list, baseline, answer, moveTo);
  showMoves(byId("chosen").querySelector("ol"), answer, baseline, moveFrom);
  showScale();
}

function showScale() {
  const most = colourTokens(byId("rankings"));
  byId("scale-middle").textContent = (most / 4).toFixed(2);
  byId("scale-most").textContent = `${most.toFixed(2)} nats`;
}

function showFacts({ source, normalise, gamma, mixture, cached, catalogue, version, variant, model, request_id: requestId, timings }) {
  const ms = (value) => `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;
  const facts = {
    Source: cached ? `${source}, from the cache` : source,
    Catalogue: catalogue,
    Version: version,
    ...(variant && { Variant: variant }),
    Model: model,
    ...(normalise && { "Normalised over": normalise === "children" ? "children of a node" : normalise }),
    ...(gamma !== undefined && { Gamma: mixture ? `${gamma.toFixed(2)}, ${mixture}` : gamma.toFixed(2) }),
    Total: ms(timings.total_ms),
    "In the model": `${ms(timings.model_ms)}, ${timings.rounds} ${timings.rounds === 1 ? "round" : "rounds"}`,
    Waiting: ms(timings.queue_ms),
    "Prompt tokens": `${timings.prompt_tokens}, ${timings.cached_tokens} from cache`,
    "Tokens computed": `${timings.model_tokens}`,
    Request: requestId,
  };
  byId("facts").replaceChildren(
    ...Object.entries(facts).map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))),
  );
}

async function copyCurl() {
  const curl = byId("curl");
  try {
    await navigator.clipboard.writeText(curl.textContent);
    byId("copy").textContent = "Copied";
    say("Copied.");
    setTimeout(() => (byId("copy").textContent = "Copy"), 2000);
  } catch {
    // Without HTTPS there is no clipboard outside localhost: selected, it takes one keystroke.
    getSelection().selectAllChildren(curl);
    say("Selected; copy with your keyboard.");
  }
}

// ---- Wiring

searchField({
  isTaken: (item) => state.history.some((known) => known.item_id === item.item_id),
  onPick: (item) => setHistory([...state.history, item], { spoken: `${item.title} added.` }),
  onProblem: (problem) => isAboutKey(problem) && start(),
});
byId("skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address behind "#" is the history's
  byId("results").focus();
});
byId("controls").addEventListener("submit", (event) => event.preventDefault());
byId("sample").addEventListener("change", pickSample);
byId("next-sample").addEventListener("click", pickNextSample);
window.addEventListener("popstate", followAddress);
byId("clear").addEventListener("click", () => {
  setHistory([], { spoken: "History cleared." });
  byId("search").focus();
});
for (const id of ["alpha", "beams", "k"]) {
  byId(id).addEventListener("input", () => {
    showSliders();
    rankSoon();
  });
}
byId("attribute").addEventListener("input", () => {
  showValues();
  rankSoon();
});
byId("gamma").addEventListener("input", () => {
  byId("own-gamma").checked = false;
  showSliders();
  rankSoon();
});
byId("own-gamma").addEventListener("input", () => {
  showSliders();
  rankSoon();
});
byId("decisions").addEventListener("input", rankSoon);
byId("tokens").addEventListener("input", rank);
byId("value").addEventListener("input", rankSoon);
byId("copy").addEventListener("click", copyCurl);
// On a phone the list comes first, and the settings when they are wanted.
byId("settings").open = matchMedia("(min-width: 56.01rem)").matches;
start();

// Two lists for the same made-up people, side by side: which one is better, judged without knowing which is which.
import { findItems, servedCatalogues } from "./api.js";
import { byId, element } from "./dom.js";
import { itemsOf, listsOf } from "./lists.js";
import { onlyHere, showMoves, showRanking } from "./ranking.js";
import { countsOf, forgetPair, keepRating, keptRatings, verdictOf } from "./ratings.js";
import { samplePeople } from "./samples.js";

const ITEMS = 10;
const ROUNDS = 5; // people for each value that the popular items share

const state = {
  catalogues: [], // all that the server has: a variant may be of another one
  catalogue: null, // that the people are of
  lists: [], // to choose two of
  people: [], // in an order drawn anew each time
  at: -1, // the person now
  sides: [], // the two lists as they stand, left and right
  running: null,
};

const say = (text) => (byId("announcement").textContent = text);
const chosen = () => ["first", "second"].map((id) => state.lists.find((list) => list.id === byId(id).value));

/** The pair whatever the order, of these versions and models: other lists are another pair. */
const pairOf = (lists) => {
  const served = state.catalogues.flatMap(({ name, version, model_fingerprint }) => [name, version, model_fingerprint]);
  return [...served, ...lists.map(({ id }) => id).sort()].join(" / ");
};

async function start() {
  try {
    const { catalogues, variants = [] } = await servedCatalogues();
    state.catalogues = variants.length ? catalogues : catalogues.slice(0, 1);
    state.catalogue = catalogues[0] ?? null;
    if (!state.catalogue) return problem({ title: "The server is starting", detail: "Try again in a moment." });
    state.lists = listsOf(state.catalogue, variants);
    state.at = -1;
    state.people = shuffled(samplePeople(await findItems("", 100), ROUNDS));
  } catch (error) {
    return problem(error);
  }
  const before = chosen();
  const { name, items, version, model } = state.catalogue;
  byId("catalogue").replaceChildren(
    element("strong", {}, name),
    ` ${items.toLocaleString("en")} items`,
    element("span", { class: "detail" }, ` · version ${version} · ${model}`),
  );
  for (const id of ["first", "second"]) {
    byId(id).replaceChildren(...state.lists.map((list) => element("option", { value: list.id }, list.name)));
  }
  const others = state.lists.slice(1); // another variant, else the scorer, else popularity
  const usual = [state.lists[0], others.find(({ id }) => id.startsWith("variant ") || id === "scorer") ?? others.at(-1)];
  for (const [index, id] of ["first", "second"].entries()) byId(id).value = (before[index] ?? usual[index]).id;
  for (const id of ["pair", "judging", "tally"]) byId(id).hidden = false;
  next();
}

function shuffled(all) {
  const left = [...all];
  for (let at = left.length - 1; at > 0; at--) {
    const other = Math.floor(Math.random() * (at + 1));
    [left[at], left[other]] = [left[other], left[at]];
  }
  return left;
}

/** The next person, the lists on sides drawn anew. */
function next() {
  if (!state.people.length) return start();
  state.at = (state.at + 1) % state.people.length;
  state.sides = byId("blind").checked && Math.random() < 0.5 ? chosen().reverse() : chosen();
  return show();
}

async function show() {
  state.running?.abort();
  const { signal } = (state.running = new AbortController());
  const person = state.people[state.at];
  const isBlind = byId("blind").checked;
  byId("person").textContent = `${person.label} (${state.at + 1} of ${state.people.length})`;
  byId("person-history").textContent = `History: ${person.history.map((item) => item.title).join(", ")}`;
  byId("message").replaceChildren();
  showTally();
  canJudge(false);
  const lists = [1, 2].map((side) => byId(`list-${side}`).querySelector("ol"));
  for (const [index, list] of lists.entries()) {
    byId(`list-${index + 1}-heading`).textContent = isBlind ? `List ${index + 1}` : `List ${index + 1}: ${state.sides[index].name}`;
    list.replaceChildren(element("li", { class: "note" }, "Ranking…"));
  }
  if (state.sides[0] === state.sides[1]) return problem({ title: "Choose two lists", detail: "They are one and the same." });
  try {
    const answers = [];
    const k = Math.min(ITEMS, state.catalogue.items);
    for (const side of state.sides) answers.push(await itemsOf(side, k, { catalogue: state.catalogue, history: person.history, signal }));
    if (!answers.every(isKnown)) return isOver();
    if (answers.some(({ items }) => !items.length)) return problem({ title: "No item is left to recommend", detail: "Skip this person." });
    for (const [index, answer] of answers.entries()) {
      showRanking(lists[index], answer, { brief: true });
      showMoves(lists[index], answer, answers[1 - index], onlyHere);
    }
    canJudge(true);
    const ids = answers.map(({ items }) => items.map((item) => item.item_id).join(" "));
    say(ids[0] === ids[1] ? `${byId("person").textContent}: both lists are the same.` : `${byId("person").textContent}: two lists.`);
  } catch (error) {
    if (!signal.aborted) problem(error);
  }
}

/** Whether the answer is of a version that the ratings of this pair are of. */
const isKnown = (answer) =>
  state.catalogues.some(({ name, version }) => name === answer.catalogue && version === answer.version);

function isOver() {
  state.people = []; // to begin again with
  problem({ title: "The server has a new version", detail: "Ratings of its lists are counted apart from those before." });
}

function problem(error) {
  const isAboutKey = error.status === 401 || error.status === 403;
  const detail = isAboutKey ? "This server asks for an API key: give it on the page Try it, in this tab." : (error.detail ?? error.message ?? "");
  const retry = element("button", { type: "button", onclick: () => (state.people.length ? show() : (byId("message").replaceChildren(), start())) }, "Try again");
  for (const side of [1, 2]) byId(`list-${side}`).querySelector("ol").replaceChildren();
  byId("message").replaceChildren(
    element("div", { class: "notice error", role: "alert" }, element("strong", {}, error.title ?? "Something went wrong"), element("p", {}, detail), retry),
  );
}

function canJudge(isOpen) {
  for (const side of [0, 1, 2]) byId(`better-${side}`).disabled = !isOpen;
}

/** Keep that the list on this side was better, 1 or 2, or none, 0; then the next person. */
function judge(side) {
  if (byId(`better-${side}`).disabled) return;
  const person = state.people[state.at];
  const [first, second] = state.sides.map(({ name }) => name);
  const isKept = keepRating({
    pair: pairOf(state.sides),
    first,
    second,
    better: side ? state.sides[side - 1].name : null,
    person: person.label,
    history: person.history.map((item) => item.item_id),
    blind: byId("blind").checked,
    at: new Date().toISOString(),
  });
  const told = `1 was ${first}, 2 was ${second}.`;
  byId("last").textContent = isKept ? `Before: ${told}` : `${told} This browser keeps nothing, so it is not counted.`;
  next();
  byId("judging").focus({ preventScroll: true });
}

function showTally() {
  const lists = chosen();
  const names = lists.map(({ name }) => name);
  const counts = countsOf(pairOf(lists), names);
  byId("verdict").textContent = verdictOf(counts, names);
  byId("counts").replaceChildren(
    ...Object.entries(counts).map(([name, count]) => element("div", {}, element("dt", {}, name), element("dd", {}, `${count}`))),
  );
}

function download() {
  const pair = pairOf(chosen());
  const text = JSON.stringify(keptRatings().filter((rating) => rating.pair === pair), null, 1);
  const href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  element("a", { href, download: "igd-ratings.json" }).click();
  setTimeout(() => URL.revokeObjectURL(href), 1000);
}

byId("pair").addEventListener("submit", (event) => event.preventDefault());
for (const id of ["first", "second", "blind"]) {
  byId(id).addEventListener("input", () => {
    byId("last").textContent = "";
    state.at -= 1; // the same person, newly drawn
    next();
  });
}
for (const side of [0, 1, 2]) byId(`better-${side}`).addEventListener("click", () => judge(side));
byId("skip-person").addEventListener("click", next);
byId("judging").addEventListener("keydown", (event) => {
  if (["0", "1", "2"].includes(event.key) && !event.repeat && !event.ctrlKey && !event.metaKey && !event.altKey) judge(Number(event.key));
});
byId("download").addEventListener("click", download);
byId("forget").addEventListener("click", () => {
  forgetPair(pairOf(chosen()));
  byId("last").textContent = "";
  showTally();
});
start();

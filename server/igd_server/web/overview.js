// What operators see: each catalogue with what is served and refused, each variant with its share and its clicks.
import { differenceOf, rateOf } from "./clicks.js";
import { byId, element } from "./dom.js";

const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;
const signed = (share) => `${share < 0 ? "−" : "+"}${(100 * Math.abs(share)).toFixed(1)}`;
const moment = (iso) => element("time", { datetime: iso }, new Date(iso).toLocaleString("en", { dateStyle: "medium", timeStyle: "medium" }));
const fact = (name, ...value) => element("div", { class: value.length > 1 ? "wide" : null }, element("dt", {}, name), element("dd", {}, ...value));
const facts = (...all) => element("dl", { class: "facts" }, ...all.filter(Boolean));

/** How a catalogue does: a word, its kind, and what it means. */
function standing({ version, published, on_trial, trouble, waiting, refusals }) {
  const refused = refusals.some((refusal) => refusal.version === published);
  if (!version) return ["nothing served", "bad"];
  if (trouble) return ["not following", "bad"];
  if (published && published !== version) return refused ? ["published version refused", "bad"] : [waiting ? "waiting" : "taking over", "warn"];
  return on_trial ? ["on trial", "warn"] : ["serving", "good"];
}

/**
 * Fill the list of catalogues. `closed` are the names of those that are folded, `onToggle(name, isOpen)` hears of it;
 * `commandsOf(name, refusal)` gives the buttons of a catalogue, or of a refused version of it.
 */
export function showCatalogues({ catalogues, unserved }, { closed, onToggle, commandsOf }) {
  byId("catalogues").replaceChildren(
    ...[...catalogues, ...unserved].map((info) => {
      const [word, kind] = standing(info);
      const made = element(
        "details",
        { class: "served", open: !closed.has(info.name), "data-name": info.name },
        element("summary", {}, element("h3", {}, info.name), element("span", { class: `standing ${kind}` }, word)),
        ...[info.trouble, info.waiting].filter(Boolean).map((why) => element("p", { class: "notice warning" }, why)),
        facts(
          fact("Version", info.version ?? "none"),
          info.published && info.published !== info.version && fact("Published", info.published),
          info.model && fact("Model", `${info.model}, ${info.published_model ? `published as ${info.published_model}` : "the server's own"}`),
          info.model_fingerprint && fact("Fingerprint", info.model_fingerprint),
          info.items !== undefined && fact("Items", info.items.toLocaleString("en")),
          info.loaded_at && fact("Loaded", moment(info.loaded_at)),
        ),
        ...commandsOf(info.name),
        refusalsOf(info, commandsOf),
      );
      made.addEventListener("toggle", () => onToggle(info.name, made.open));
      return made;
    }),
  );
}

function refusalsOf({ name, refusals }, commandsOf) {
  if (!refusals.length) return element("p", { class: "note" }, "No version is refused.");
  const rows = refusals.map((refusal) =>
    element(
      "li",
      {},
      element("p", {}, element("strong", {}, refusal.version), ` ${refusal.reason}, `, moment(refusal.refused_at)),
      element("p", { class: "note" }, refusal.detail),
      ...commandsOf(name, refusal),
    ),
  );
  return element("div", { class: "refusals" }, element("h4", {}, "Refused versions, latest first"), element("ul", {}, ...rows));
}

/** Fill the list of variants; without `clicks`, which only operators get, their shares alone. */
export function showVariants({ clicks, variants = [], since }) {
  const all = clicks ?? variants;
  const isNone = !variants.length;
  byId("variants").hidden = isNone && !clicks;
  byId("variants-heading").textContent = isNone ? "Answers" : "Variants";
  byId("variants-note").replaceChildren(...(clicks ? ["Answers and successes that this process has counted since ", moment(since), ". Requests that name a variant count too."] : ["Click rates are for operators."]));
  const weights = all.reduce((sum, { weight }) => sum + weight, 0);
  const rates = (clicks ?? []).map(rateOf);
  const most = Math.max(0.01, ...rates.filter(Boolean).map(({ high }) => high));
  byId("variant-list").replaceChildren(
    ...all.map((each, index) =>
      element(
        "li",
        {},
        element("h3", {}, each.name || "All answers"),
        facts(
          !isNone && fact("Share of people", percent(each.weight / weights, 0)),
          each.catalogue && fact("Catalogue", each.catalogue),
          each.adapter && fact("Adapter", each.adapter),
          clicks && fact("Answers", each.answers.toLocaleString("en")),
          clicks && fact("With a success", each.followed.toLocaleString("en")),
          clicks && fact("Click rate (95 %)", ...rateShown(rates[index], most)),
        ),
      ),
    ),
  );
  showDifference(all, rates);
}

function rateShown(rate, most) {
  if (!rate) return ["nothing to say yet"];
  const track = element("span", { class: "track", "aria-hidden": "true" }, element("span", {}));
  track.firstChild.style.left = `${(100 * rate.low) / most}%`;
  track.firstChild.style.width = `${(100 * (rate.high - rate.low)) / most}%`;
  return [`${percent(rate.value)} (${percent(rate.low)} to ${percent(rate.high)})`, track];
}

/** Each variant against the first, in a sentence. */
function showDifference(variants, [first, ...others]) {
  const told = others.map((rate, index) => {
    const names = `${variants[index + 1].name} less ${variants[0].name}`;
    if (!first || !rate) return `${names}: nothing to say yet.`;
    const { value, low, high } = differenceOf(rate, first);
    const sure = low > 0 || high < 0 ? "" : ", so they are not told apart yet";
    return `${names}: ${signed(value)} points (${signed(low)} to ${signed(high)})${sure}.`;
  });
  const caution = "This takes answers for independent, which those of one person are not: igd variants counts by person.";
  byId("difference").replaceChildren(...told.map((line) => element("span", { class: "line" }, line)), told.length ? element("span", { class: "line note" }, caution) : "");
}

/** Where answers were found; nothing for those who are no operators. */
export function showCache({ cache }) {
  byId("cache").hidden = !cache;
  if (!cache) return;
  const all = Object.values(cache).reduce((sum, count) => sum + count, 0);
  const told = (count) => (all ? `${count.toLocaleString("en")} (${percent(count / all, 0)})` : "0");
  byId("cache-facts").replaceChildren(
    fact("In this process", told(cache.local)),
    fact("In the store", told(cache.store)),
    fact("Just being computed", told(cache.joined)),
    fact("Computed", told(cache.miss)),
  );
}

/** The last events of the log; nothing for those who are no operators. */
export function showEvents({ events }) {
  byId("events").hidden = !events;
  byId("event-list").replaceChildren(
    ...(events ?? []).map(({ at, level, event, detail, times }) =>
      element(
        "li",
        { class: level },
        element("p", {}, moment(at), " ", element("strong", {}, event), level === "info" ? "" : ` (${level})`, times > 1 ? `, ${times} times` : ""),
        detail && element("p", { class: "note" }, detail),
      ),
    ),
  );
}

// The lists that this server can give for one history: as it serves, by each part alone, and by each of its variants.
import { recommend } from "./api.js";

export const MOST_ITEMS = 100; // that one request may ask for
const UNANSWERED = ["deadline-exceeded", "engine-unavailable", "history-unavailable"];
const NAMES = { ease: "EASE", sasrec: "SASRec" };

/** A kind of item scorer, as people call it; several kinds have a "+" between. */
export const named = (kind) =>
  kind.split("+").map((each) => NAMES[each] ?? each.charAt(0).toUpperCase() + each.slice(1)).join(" and ");

/**
 * What there is to compare: `{id, name, body}`; the body names what the request adds to a history. A server with
 * variants takes one of them for a request that names none, so there the variants are what is served.
 */
export function listsOf({ scorer }, variants) {
  const served = variants.length
    ? variants.map(({ name }) => ({ id: `variant ${name}`, name: `Variant ${name}`, body: { variant: name } }))
    : [{ id: "served", name: "As served", body: {} }];
  const [{ body }] = served;
  const parts = [
    { id: "model", name: "Model alone", body: { ...body, gamma: 0 } },
    { id: "scorer", name: `${scorer ? named(scorer.kind) : ""} alone`, body: { ...body, gamma: 1 } },
  ];
  return [...served, ...(scorer ? parts : []), { id: "popular", name: "Most popular", body: null }];
}

/**
 * The answer to `body`, from this source: an error that says why where it is another one's. Popularity answers for a
 * model that cannot.
 */
export async function answered(body, source, signal) {
  const answer = await recommend(body, signal);
  if (answer.source === source) return answer;
  const why = answer.warnings?.find(({ code }) => UNANSWERED.includes(code));
  throw new Error(`The model did not answer${why ? `: ${why.detail}` : ""}.`);
}

/** The items of a list for `history`, and the catalogue and version that they are of. */
export async function itemsOf(list, k, { catalogue, history, signal }) {
  const ask = (body, source) => answered(body, source, signal);
  if (!list.body) return mostPopular({ k }, { catalogue, history, ask });
  return ask({ history: history.map((item) => item.item_id), k, ...list.body }, "model");
}

/** Without a history popularity answers; what the history has, and other items of its titles, are left out as seen. */
export async function mostPopular({ k, filter }, { catalogue, history, ask }) {
  const wanted = Math.min(k + history.length, MOST_ITEMS, catalogue.items);
  const exclude = history.map((item) => item.item_id);
  const { items, ...of } = await ask({ history: [], exclude, k: wanted, ...(filter && { filter }) }, "popularity");
  const seen = new Set(history.map((item) => item.title));
  const fresh = items.filter((item) => !seen.has(item.title)).slice(0, k);
  return { ...of, items: fresh.map((item, index) => ({ ...item, rank: index + 1 })) };
}

// Why an item is recommended, in a sentence: what becomes of it when a title of the history is left out.
import { titled } from "./dom.js";
import { MOST_ITEMS } from "./lists.js";

const MOST_LEFT_OUT = 10; // the newest titles of a history: each is a recommendation of its own
const SHARE = 0.5; // of the greatest loss; who costs so much is a cause too

/**
 * What was recommended without each of `titlesOf(history)`, newest last: `[{title, places}]`, `places` a map
 * from an item's id to its rank and score. `ask` answers a request; `onStep` hears how far it is.
 */
export async function leaveOneOut(answer, body, { history, items, ask, onStep }) {
  const ids = history.map((item) => item.item_id);
  const k = Math.min(2 * body.k, MOST_ITEMS, items);
  const same = answer.gamma === undefined ? {} : { gamma: answer.gamma }; // the server's own may follow the length
  const without = [];
  const titles = titlesOf(history).slice(-MOST_LEFT_OUT);
  for (const title of titles) {
    onStep(without.length + 1, titles.length);
    const rest = history.filter((item) => item.title !== title).map((item) => item.item_id);
    const other = await ask({ ...body, ...same, history: rest, exclude: ids, k, beams: Math.max(body.beams, k), explain: false });
    const taken = new Set(history.map((each) => each.title));
    const fresh = other.items.filter((each) => !taken.has(each.title));
    const places = new Map(fresh.map((each, index) => [each.item_id, { rank: index + 1, score: each.score }]));
    without.push({ title, places, least: fresh.at(-1)?.score ?? 0, most: fresh.length });
  }
  return without;
}

/** The titles of a history, each once, where it stands last: items of one title are one reason. */
export const titlesOf = (history) => [...new Set(history.map(({ title }) => title).reverse())].reverse();

/** The sentence on a ranked item, as nodes; `without` is what `leaveOneOut` gave, empty for a history of one title. */
export function sentence(item, history, without) {
  const titles = titlesOf(history);
  if (titles.length === 1) return ["Because of ", titled(titles[0]), ", the only title here."];
  const losses = without.map((each) => ({ ...each, place: each.places.get(item.item_id), loss: lossOf(item, each) }));
  const causes = losses.sort((a, b) => b.loss - a.loss).filter(({ loss }) => loss > 0 && loss >= SHARE * losses[0].loss);
  const which = titles.length > MOST_LEFT_OUT ? `the newest ${MOST_LEFT_OUT}` : "them";
  if (!causes.length) return [`Not because of one title: without any one of ${which} its score would be no lower.`];
  const [first, second] = causes;
  const also = second ? [" and ", titled(second.title)] : [];
  return ["Because of ", titled(first.title), ...also, "; ", ...fate(item, first, Boolean(second)), "."];
}

/** Nats of score that an item loses; at least so many, where it is no longer among the items. */
const lossOf = (item, { places, least }) => item.score - (places.get(item.item_id)?.score ?? Math.min(least, item.score - 1e-9));

function fate(item, { title, place, most }, isNamed) {
  const without = isNamed ? ["without ", titled(title), ","] : ["without it,"];
  if (!place) return [...without, ` it would not be among the first ${most}`];
  if (place.rank > item.rank) return [...without, ` it would be number ${place.rank}`];
  return [...without, ` it would be number ${place.rank} all the same, with a lower score`];
}

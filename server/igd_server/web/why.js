// Why an item is recommended, in a sentence: what becomes of it when a title of the history is left out.
import { titled } from "./dom.js";
import { MOST_ITEMS } from "./lists.js";

const MOST_LEFT_OUT = 10; // the newest titles of a history: each is a recommendation of its own
const SHARE = 0.5; // of the greatest loss; who costs so much is a cause too

/**
 * What was recommended without each of the newest titles of `history`, newest last: `[{item, places}]`, `places` a map
 * from an item's id to its rank and score. `ask` answers a request; `onStep` hears how far it is.
 */
export async function leaveOneOut(answer, body, { history, items, ask, onStep }) {
  const ids = history.map((item) => item.item_id);
  const k = Math.min(2 * body.k, MOST_ITEMS, items);
  const same = answer.gamma === undefined ? {} : { gamma: answer.gamma }; // the server's own may follow the length
  const without = [];
  for (const item of history.slice(-MOST_LEFT_OUT)) {
    onStep(without.length + 1, Math.min(history.length, MOST_LEFT_OUT));
    const rest = ids.filter((id) => id !== item.item_id);
    const other = await ask({ ...body, ...same, history: rest, exclude: ids, k, beams: Math.max(body.beams, k), explain: false });
    const taken = new Set(history.map((each) => each.title));
    const fresh = other.items.filter(({ title }) => !taken.has(title));
    const places = new Map(fresh.map((each, index) => [each.item_id, { rank: index + 1, score: each.score }]));
    without.push({ item, places, least: fresh.at(-1)?.score ?? 0, most: fresh.length });
  }
  return without;
}

/** The sentence on a ranked item, as nodes; `without` is what `leaveOneOut` gave, empty for a history of one title. */
export function sentence(item, history, without) {
  if (history.length === 1) return ["Because of ", titled(history[0].title), ", the only title here."];
  const losses = without.map((each) => ({ ...each, place: each.places.get(item.item_id), loss: lossOf(item, each) }));
  const causes = losses.sort((a, b) => b.loss - a.loss).filter(({ loss }) => loss > 0 && loss >= SHARE * losses[0].loss);
  if (!causes.length) return ["Not because of one title: without any one of them it would stand as high."];
  const [first, second] = causes;
  const also = second ? [" and ", titled(second.item.title)] : [];
  return ["Because of ", titled(first.item.title), ...also, "; ", ...fate(item, first, Boolean(second)), "."];
}

/** Nats of score that an item loses; at least so many, where it is no longer among the items. */
const lossOf = (item, { places, least }) => item.score - (places.get(item.item_id)?.score ?? Math.min(least, item.score - 1e-9));

function fate(item, { item: cause, place, most }, isNamed) {
  const without = isNamed ? ["without ", titled(cause.title), ","] : ["without it,"];
  if (!place) return [...without, ` it would not be among the first ${most}`];
  if (place.rank > item.rank) return [...without, ` it would be number ${place.rank}`];
  return [...without, " it would stand as high, by less"];
}

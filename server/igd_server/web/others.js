// What the model, the item scorer and popularity say of the same history, each alone.
import { byId, element } from "./dom.js";
import { mostPopular, named } from "./lists.js";
import { placeOf, showMoves, showRanking } from "./ranking.js";

/**
 * Fill the lists below the recommendations, one after the other. `answer` is to the request `body`; `ask` gives the
 * answer to another one, from its source.
 */
export async function showOthers(answer, body, { catalogue, history, ask, signal }) {
  const { scorer } = catalogue;
  byId("scorer-heading").textContent = scorer ? named(scorer.kind) : "";
  const alone = (gamma) => ((answer.gamma ?? 0) === gamma ? answer : ask({ ...body, gamma, explain: false }, "model"));
  const lists = {
    popular: () => mostPopular(body, { catalogue, history, ask }),
    ...(scorer && { model: () => alone(0), scorer: () => alone(1) }),
  };
  for (const id of Object.keys(lists)) note(id, "Ranking…");
  for (const [id, ranked] of Object.entries(lists)) {
    if (signal.aborted) return;
    try {
      const other = await ranked();
      if (!signal.aborted) show(id, other, answer);
    } catch (error) {
      if (!signal.aborted) note(id, error.detail ?? error.message);
    }
  }
}

const listOf = (id) => byId(id).querySelector("ol");
const note = (id, text) => listOf(id).replaceChildren(element("li", { class: "note" }, text));

function show(id, other, answer) {
  if (!other.items.length) return note(id, "No item is left.");
  showRanking(listOf(id), other, { brief: true });
  showMoves(listOf(id), other, answer, placeOf);
}

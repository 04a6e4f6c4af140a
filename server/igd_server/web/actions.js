// The buttons of a recommended item: add it to the history, and ask why it is here.
import { element } from "./dom.js";
import { leaveOneOut, sentence, titlesOf } from "./why.js";

/**
 * The buttons below `item` of `answer` to the request `body`, for `history`: `add` takes the item, `ask` answers
 * another request, `say` speaks. Popularity has no reasons of a history.
 */
export function actionsOf(item, { add, ...of }) {
  const button = (label, onclick) =>
    element("button", { type: "button", class: "quiet", onclick }, label, element("span", { class: "unseen" }, ` ${item.title}`));
  const adding = button("Add to history", () => add(item));
  return of.answer.source === "model" ? [adding, button("Why this?", ({ currentTarget }) => explain(currentTarget, item, of))] : [adding];
}

/** Put the sentence in place of its button; the first one asks for the lists that all of them need. */
async function explain(button, item, { answer, body, history, items, ask, say, signal }) {
  const row = button.closest("li");
  const place = element("p", { class: "note why", tabindex: "-1" }, "Ranking…");
  row.querySelector(".why")?.remove();
  row.querySelector(".actions").before(place);
  button.hidden = true;
  place.focus();
  try {
    const onStep = (step, steps) => (place.textContent = `Ranking without title ${step} of ${steps}…`);
    const without = titlesOf(history).length > 1 ? await leaveOneOut(answer, body, { history, items, ask, onStep }) : [];
    place.replaceChildren(...sentence(item, history, without));
    say(place.textContent);
  } catch (error) {
    if (signal.aborted) return;
    place.replaceChildren(error.detail ?? error.message);
    button.hidden = false;
  }
}

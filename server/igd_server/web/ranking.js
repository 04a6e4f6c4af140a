// Ranked lists: items with their tokens, moves between two lists, and the tooltip with a token's numbers.
import { byId, element, titled } from "./dom.js";

// Control characters, and those that would turn the reading direction of the tokens around them.
const UNPRINTABLE = /[\p{Cc}\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/gu;
const HIDE_AFTER_MS = 150; // long enough to move the pointer from a token into its tooltip
const EDGE_PX = 8;

const fixed = (number, digits = 2) => number.toFixed(digits).replace("-", "−");
const isModel = (answer) => answer.source === "model";
const unseen = (text) => element("span", { class: "unseen" }, text);

/**
 * Colour the tokens below `root` by the square root of their share of the largest information gain there, which keeps
 * the small gains late in a title apart. Returns the largest, in nats.
 */
export function colourTokens(root) {
  const tokens = [...root.querySelectorAll(".token")];
  const most = tokens.reduce((largest, { token }) => Math.max(largest, token.information_gain), 0);
  for (const button of tokens) button.style.setProperty("--heat-share", Math.sqrt(button.token.information_gain / (most || 1)));
  return most;
}

/** Fill `list` with an answer's items; `brief`, with their titles alone. `actions` gives the buttons of an item. */
export function showRanking(list, answer, { brief = false, actions } = {}) {
  list.replaceChildren(
    ...answer.items.map((item) =>
      element(
        "li",
        {},
        element("span", { class: "rank", "aria-hidden": "true" }, `${item.rank}`),
        element(
          "div",
          { class: "item" },
          titled(item.title),
          ...(brief ? [] : details(item, isModel(answer))),
          actions ? element("div", { class: "actions" }, ...actions(item)) : null,
        ),
      ),
    ),
  );
}

const details = (item, byModel) => [
  byModel && !item.explanation ? null : element(
    "span",
    { class: "score", title: item.probability === undefined ? null : "score in nats; what the model alone gives it, of 100 %" },
    byModel ? fixed(item.score) : `${fixed(100 * item.score)} %`,
    unseen(byModel ? " score in nats" : " of interactions"),
    item.probability === undefined ? null : ` · ${fixed(100 * item.probability)} %`,
    item.probability === undefined ? null : unseen(" given by the model alone"),
  ),
  item.explanation ? tokenBar(item) : null,
  item.duplicates ? element("p", { class: "note" }, `Other items of this title: ${item.duplicates.join(", ")}`) : null,
];

/** Say beside each item of `answer`, shown in `list`, where it stands in `other`; the focus stays where it is. */
export function showMoves(list, answer, other, describe) {
  const ranks = new Map(other.items.map((item) => [item.item_id, item.rank]));
  for (const [index, item] of answer.items.entries()) {
    list.children[index].querySelector(".title").after(describe(item.rank, ranks.get(item.item_id)));
  }
}

/** Where an item of the chosen ranking comes from. */
export function moveFrom(rank, before) {
  if (before === undefined) return move("new", "new", ", not among these at alpha 0");
  const by = before - rank;
  if (by === 0) return move("same", "=", ", the same rank at alpha 0");
  return move(by > 0 ? "up" : "down", `${by > 0 ? "▲" : "▼"} ${Math.abs(by)}`, `, rank ${before} at alpha 0`);
}

/** Where an item of the baseline goes. */
export function moveTo(rank, after) {
  if (after === undefined) return move("gone", "leaves", ", leaves the ranking");
  return after === rank ? move("same", "=", ", the same rank") : move("to", `→ ${after}`, `, goes to rank ${after}`);
}

/** Where an item of another ranking stands among the recommendations. */
export function placeOf(_, chosen) {
  if (chosen === undefined) return move("same", "–", ", not recommended");
  return move("to", `→ ${chosen}`, `, recommended at rank ${chosen}`);
}

/** In one of two lists side by side: that the other one does not have it. */
export function onlyHere(_, there) {
  return there === undefined ? move("new", "only here", "") : move("same", "", "");
}

const move = (kind, sign, spoken) =>
  element("span", { class: `move ${kind}` }, element("span", { "aria-hidden": "true" }, sign), unseen(spoken));

function tokenBar(item) {
  return element(
    "div",
    { class: "tokens", role: "toolbar", "aria-label": `Tokens of ${item.title}` },
    ...item.explanation.map((token, index) => tokenButton(token, index === 0, index === item.explanation.length - 1)),
  );
}

/** The last token of a path ends the title; its name, as `<|im_end|>`, is nobody's business. */
function tokenButton(token, isFirst, isLast) {
  const text = isLast ? " end" : token.token.replace(UNPRINTABLE, marked);
  const button = element(
    "span",
    {
      class: token.forced ? "token forced" : "token",
      role: "button",
      // One stop for the Tab key in each item; arrow keys move inside.
      tabindex: isFirst ? "0" : "-1",
      "aria-label": `${text.trim() || "space"}: ${numbersOf(token).map((pair) => pair.join(" ")).join(", ")}`,
    },
    text,
  );
  button.token = token;
  return button;
}

const marked = (char) => (char === "\n" ? "↵" : `‹U+${char.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}›`);

const percent = (token) => (100 * Math.exp(token.logprob)).toPrecision(3);

const numbersOf = (token) => [
  ["information gain", `${fixed(token.information_gain, 3)} nats`],
  ...(token.logprob === undefined ? [] : [["log-probability", `${fixed(token.logprob, 3)} nats (${percent(token)} %)`]]),
  ["weight", fixed(token.weight, 3)],
  // Without a log-probability the weight is 0: a forced token where decisions alone count.
  ["weighted", `${fixed(token.weight * (token.logprob ?? 0), 3)} nats`],
  // With a scorer mixed in; what its share of a token comes to depends on the mixture, so the sum is the server's.
  ...(token.prior_logprob === undefined ? [] : [["scorer’s log-probability", `${fixed(token.prior_logprob, 3)} nats`]]),
  ...(token.score === undefined ? [] : [["adds to the score", `${fixed(token.score, 3)} nats`]]),
  ["token id", `${token.token_id}`],
  ...(token.forced ? [["forced", "the catalogue leaves no other token here"]] : []),
];

/** Hover, keyboard focus and taps on the tokens below `root` show the tooltip; Escape hides it. */
export function tokenTooltips(root) {
  const tooltip = byId("tooltip");
  const tokenOf = (event) => event.target.closest?.(".token");
  let timer = 0;

  function hide() {
    clearTimeout(timer);
    tooltip.hidden = true;
  }

  function show(button) {
    clearTimeout(timer);
    tooltip.replaceChildren(
      element("code", {}, `"${button.textContent}"`),
      element("dl", {}, ...numbersOf(button.token).flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)])),
    );
    tooltip.hidden = false;
    const [at, box] = [button.getBoundingClientRect(), tooltip.getBoundingClientRect()];
    const most = document.documentElement.clientWidth - box.width - EDGE_PX;
    const left = Math.max(EDGE_PX, Math.min(at.left + at.width / 2 - box.width / 2, most));
    const top = at.top - box.height - EDGE_PX > 0 ? at.top - box.height - EDGE_PX : at.bottom + EDGE_PX;
    tooltip.style.left = `${left + scrollX}px`;
    tooltip.style.top = `${top + scrollY}px`;
  }

  function hideSoon() {
    clearTimeout(timer);
    timer = setTimeout(() => {
      const focused = document.activeElement?.closest(".token");
      if (focused?.matches(":focus-visible")) show(focused);
      else hide();
    }, HIDE_AFTER_MS);
  }

  function onKey(event) {
    const button = tokenOf(event);
    if (!button) return;
    const all = [...button.parentElement.children];
    const at = all.indexOf(button);
    const next = { ArrowRight: all[at + 1], ArrowLeft: all[at - 1], Home: all[0], End: all.at(-1) }[event.key];
    if (next) {
      button.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    } else if (event.key === "Enter" || event.key === " ") show(button);
    else return;
    event.preventDefault();
  }

  root.addEventListener("pointerover", (event) => tokenOf(event) && show(tokenOf(event)));
  root.addEventListener("pointerout", (event) => tokenOf(event) && hideSoon());
  root.addEventListener("focusin", (event) => tokenOf(event) && show(tokenOf(event)));
  root.addEventListener("focusout", hide);
  root.addEventListener("click", (event) => tokenOf(event) && show(tokenOf(event)));
  root.addEventListener("keydown", onKey);
  tooltip.addEventListener("pointerenter", () => clearTimeout(timer));
  tooltip.addEventListener("pointerleave", hideSoon);
  document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
  document.addEventListener("pointerdown", (event) => {
    if (!tokenOf(event) && !tooltip.contains(event.target)) hide();
  });
  return { hide };
}

// Which of two lists people found better: kept in this browser, and what can be said of it.
const KEY = "igd-ratings";
const MOST = 5000;
const Z = 1.96; // of a normal distribution's middle 95 %

/** All ratings kept here, oldest first: `{pair, first, second, better, person, history, blind, at}`. */
export function keptRatings() {
  try {
    const kept = JSON.parse(localStorage.getItem(KEY) ?? "[]");
    return Array.isArray(kept) ? kept.filter((rating) => rating?.pair) : [];
  } catch {
    return []; // no storage here, or another program's
  }
}

/** Keep a rating; false where the browser keeps nothing. */
export function keepRating(rating) {
  return write([...keptRatings(), rating].slice(-MOST));
}

export const forgetPair = (pair) => write(keptRatings().filter((rating) => rating.pair !== pair));

function write(ratings) {
  try {
    localStorage.setItem(KEY, JSON.stringify(ratings));
    return true;
  } catch {
    return false;
  }
}

/** How often each list of the pair was better, by its name, and how often none was. */
export function countsOf(pair, names) {
  const better = keptRatings().filter((rating) => rating.pair === pair).map((rating) => rating.better);
  const count = (name) => better.filter((each) => each === name).length;
  return { [names[0]]: count(names[0]), [names[1]]: count(names[1]), "No difference": count(null) };
}

/** Wilson's interval (1927) of the share `wins` of `all`, 95 %. */
export function interval(wins, all) {
  const share = wins / all;
  const middle = share + Z ** 2 / (2 * all);
  const half = Z * Math.sqrt((share * (1 - share)) / all + Z ** 2 / (4 * all ** 2));
  return [(middle - half) / (1 + Z ** 2 / all), (middle + half) / (1 + Z ** 2 / all)];
}

/** What the counts say, in a sentence. */
export function verdictOf(counts, [one, other]) {
  const all = counts[one] + counts[other];
  if (!all) return "Nothing is decided yet.";
  const [low, high] = interval(counts[one], all);
  const percent = (value) => `${Math.round(100 * value)} %`;
  const range = `${one} was better in ${percent(counts[one] / all)} of ${all} decided (${percent(low)} to ${percent(high)})`;
  if (low > 0.5) return `${one} is better: ${range}.`;
  if (high < 0.5) return `${other} is better: ${range}.`;
  return `Not told apart yet: ${range}.`;
}

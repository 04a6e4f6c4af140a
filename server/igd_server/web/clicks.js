// Click rates of variants and how sure they are: each answer taken for itself, whoever asked.
import { interval } from "./ratings.js";

/**
 * The share of answers that were followed, with Wilson's interval; null where counts cannot be a share: none yet, or
 * events on answers that another process gave.
 */
export function rateOf({ answers, followed }) {
  if (!answers || followed > answers) return null;
  const [low, high] = interval(followed, answers);
  return { value: followed / answers, low, high };
}

/** `one` less `other`: Newcombe's hybrid score interval (1998, method 10), 95 %. */
export function differenceOf(one, other) {
  const value = one.value - other.value;
  const low = value - Math.hypot(one.value - one.low, other.high - other.value);
  const high = value + Math.hypot(one.high - one.value, other.value - other.low);
  return { value, low, high };
}

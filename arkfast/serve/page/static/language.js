// Which language the page speaks, and how its texts come into it: always as text, never as HTML.

import { TEXTS } from "./texts.js";

const KEPT = "arkfast-language";
const said = new Map(); // element → function that gives its text
let language = chosen();

function chosen() {
  const kept = remembered();
  if (kept in TEXTS) return kept;
  const wanted = (navigator.languages ?? [navigator.language]).map((tag) => String(tag).toLowerCase().split("-")[0]);
  return wanted.find((code) => code in TEXTS) ?? "en";
}

function remembered() {
  try {
    return localStorage.getItem(KEPT) ?? "";
  } catch { // storage is switched off
    return "";
  }
}

/** The page's language: en or zh. */
export const current = () => language;

/** Speak another language, and remember it where the browser lets the page. */
export function speak(code) {
  language = code;
  try {
    localStorage.setItem(KEPT, code);
  } catch { // storage is switched off, and the next visit asks the browser again
  }
  put();
}

/** A text of the page; values replace the names in braces. */
export function text(name, values = {}) {
  return TEXTS[language][name].replace(/\{(\w+)\}/g, (_, value) => String(values[value]));
}

/**
 * Let an element say something, and say it anew when the language changes. what: the name of a text, a function that gives what is said,
 * or null for nothing.
 */
export function say(element, what) {
  const shape = typeof what === "string" ? () => text(what) : what;
  if (shape === null) said.delete(element);
  else said.set(element, shape);
  element.textContent = shape === null ? "" : shape();
}

/** Write all texts of the page's own elements. */
export function put() {
  document.documentElement.lang = language === "zh" ? "zh-Hans" : "en";
  document.title = `${text("title")} · arkfast`;
  for (const element of document.querySelectorAll("[data-text]")) element.textContent = text(element.dataset.text);
  for (const element of document.querySelectorAll("[data-label]")) element.setAttribute("aria-label", text(element.dataset.label));
  for (const [element, shape] of said) element.textContent = shape();
}

/** A number of bytes, such as 3.2 MB. */
export function size(bytes) {
  const unit = bytes < 1e6 ? "kB" : "MB";
  const amount = bytes / (unit === "kB" ? 1e3 : 1e6);
  return `${new Intl.NumberFormat(language, { maximumFractionDigits: amount < 100 ? 1 : 0 }).format(amount)} ${unit}`;
}

/** A share as a whole percentage. */
export const percent = (share) => new Intl.NumberFormat(language, { style: "percent", maximumFractionDigits: 0 }).format(share);

/** Seconds as minutes and seconds, such as 1:02.5. */
export function time(seconds) {
  const tenths = Math.round(seconds * 10);
  const [minutes, rest] = [Math.floor(tenths / 600), tenths % 600];
  const tail = `${String(Math.floor(rest / 10)).padStart(2, "0")}.${rest % 10}`;
  return minutes < 60 ? `${minutes}:${tail}` : `${Math.floor(minutes / 60)}:${String(minutes % 60).padStart(2, "0")}:${tail}`;
}

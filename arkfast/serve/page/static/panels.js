// The panels beside a transcription: the key, and what the service says of itself.

import { say, text } from "./language.js";
import { json, useKey } from "./service.js";

const KEPT = "arkfast-key";
export const by = (id) => document.getElementById(id);

/** What a Failed tells, in the page's language, and then in the service's own words. */
export function sentence(error) {
  const parts = [text(error.known, error.values)];
  if (error.message) parts.push(error.message);
  if (error.retry !== null) parts.push(text("retry", { seconds: error.retry }));
  return parts.join(" ");
}

/** The key: kept for this tab, and nowhere else. */
export class KeyPanel {
  #onKey;

  /** onKey is called when there is another key. */
  constructor(onKey) {
    this.#onKey = onKey;
    by("key-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#take(by("key").value.trim());
    });
    by("key-forget").addEventListener("click", () => this.#forget());
  }

  /** Whether requests can be made: a key is there, or none is needed. */
  get isEnough() {
    return by("key-panel").hidden || !by("key-forget").hidden;
  }

  /** Ask for a key where one is needed, and use the one that the tab has. */
  show(isNeeded) {
    by("key-panel").hidden = !isNeeded;
    let kept = "";
    try {
      kept = sessionStorage.getItem(KEPT) ?? "";
    } catch { // storage is switched off: the key lasts until the page is left
      return;
    }
    if (isNeeded && kept) this.#use(kept);
  }

  /** Say that a key is wanted, or that this one is not known. */
  ask(name) {
    by("key-panel").hidden = false;
    say(by("key-state"), name);
    by("key").focus();
  }

  #take(key) {
    if (!/^[\x21-\x7e]+$/.test(key)) return this.ask(key ? "key_unusable" : "key_wanted");
    try {
      sessionStorage.setItem(KEPT, key);
    } catch { // see show
    }
    this.#use(key);
    this.#onKey();
  }

  #use(key) {
    useKey(key);
    by("key").value = "";
    by("key-forget").hidden = false;
    say(by("key-state"), "key_kept");
  }

  #forget() {
    try {
      sessionStorage.removeItem(KEPT);
    } catch { // it was never kept
    }
    useKey("");
    by("key-forget").hidden = true;
    say(by("key-state"), "key_gone");
    by("key").focus();
  }
}

/** Whether the service lives and decodes, what it serves, and which tokens a transcript may hold. */
export class ServicePanel {
  #mask = null;

  /** onRefused is called with a Failed of status 401. */
  constructor(onRefused) {
    by("check").addEventListener("click", async () => {
      say(by("service-status"), "working_check");
      await this.check();
      say(by("service-status"), "checked");
    });
    by("ask-mask").addEventListener("click", () => this.#asked(async () => {
      this.#mask = await json("/token-mask");
      this.put();
      say(by("service-status"), "checked");
    }, onRefused));
  }

  /** Ask whether it lives and decodes, which needs no key. */
  async check() {
    await Promise.all(["health", "ready"].map(async (name) => {
      try {
        await json(`/${name}`);
        say(by(name), "yes");
      } catch (error) {
        say(by(name), () => text("no", { why: sentence(error) }));
      }
    }));
  }

  /** Show what is served. Throws Failed. */
  async model() {
    const { data } = await json("/v1/models");
    const names = data.map(({ id }) => id);
    say(by("model"), () => text("served", { name: names.at(-1) })); // the first is the alias of whatever is served
  }

  async #asked(work, onRefused) {
    say(by("service-status"), null);
    try {
      await work();
    } catch (error) {
      say(by("service-status"), () => sentence(error));
      if (error.status === 401) onRefused(error);
    }
  }

  /** Write the token mask, once it was asked for, in the page's language. */
  put() {
    if (this.#mask === null) return;
    const { allowed_count: allowed, blocked_count: blocked, eos_token_ids: ends, tokens } = this.#mask;
    say(by("mask-about"), () => text("mask_about", { allowed, blocked, ends: ends.join(", ") }));
    by("mask-rows").replaceChildren(...Object.entries(tokens).map(([token, { id, allowed: may }]) => {
      const row = document.createElement("tr");
      for (const value of [token, id, text(may ? "token_allowed" : "token_blocked")]) row.insertCell().textContent = value;
      return row;
    }));
    by("mask").hidden = false;
  }
}

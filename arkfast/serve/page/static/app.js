// The page: a recording is chosen, dropped or made; it is sent; its transcript is shown.

import { copy, save, written } from "./captions.js";
import { current, percent, put, say, size, speak, text, time } from "./language.js";
import { NoMicrophone, Recording } from "./microphone.js";
import { KeyPanel, ServicePanel, by, sentence } from "./panels.js";
import { Failed, json, transcribe } from "./service.js";
import { Transcript, understood } from "./transcript.js";
import { Waveform } from "./waveform.js";

const FORM_BYTES = 10000; // more than a request's fields and its boundaries take
const PRESETS = {
  likely: { temperature: 0, top_p: 1, top_k: 0, repetition_penalty: 1 },
  repetition: { temperature: 0, top_p: 1, top_k: 0, repetition_penalty: 1.1 },
  varied: { temperature: 0.7, top_p: 0.9, top_k: 50, repetition_penalty: 1 },
};

let settings = { keys: false, max_upload_mb: Infinity, max_duration: Infinity, words: false }; // until the service has told them
let file = null;
let recording = null; // under way
let running = null; // the AbortController of a transcription under way
let shown = null; // { answer, transcript, seconds }

const player = by("player");
const waveform = new Waveform(by("waveform"), seek);
const transcript = new Transcript(by("transcript"), seek);
const keys = new KeyPanel(() => greet());
const service = new ServicePanel(() => keys.ask("error_key"));

function seek(seconds) {
  player.currentTime = seconds;
  player.play().catch(() => {}); // a browser may want another click first; the player shows the place all the same
}

/** Show what is wrong: the name of a text, a function that gives it, or null for nothing. */
function showError(what) {
  say(by("error"), what);
  by("error").hidden = what === null;
}

/** Tell of a request that failed. Whatever else went wrong is a fault of the page, and goes to the console. */
function tell(error) {
  if (!(error instanceof Failed)) throw error;
  showError(() => sentence(error));
}

/** Bytes of the largest recording that the service takes. */
const mostBytes = () => settings.max_upload_mb * 1e6 - FORM_BYTES;

// -- the recording ------------------------------------------------------------------------------------------------------------------------

async function take(chosen, name = () => chosen.name) {
  file = shown = null;
  player.pause();
  showError(null);
  by("result").hidden = true;
  by("heard").hidden = true;
  const most = mostBytes();
  if (!chosen.size) return showError("empty_file");
  if (chosen.size > most) return showError(() => text("too_large", { size: size(chosen.size), most: size(most) }));
  file = chosen;
  if (player.src) URL.revokeObjectURL(player.src);
  player.src = URL.createObjectURL(file);
  player.hidden = false;
  by("heard").hidden = false;
  by("waveform").hidden = false;
  const about = () => {
    const known = { name: name(), size: size(chosen.size), time: time(waveform.duration) };
    return text(waveform.duration ? "about_long" : "about", known);
  };
  waveform.clear();
  say(by("about"), about);
  const missing = await waveform.show(file);
  if (file !== chosen) return;
  by("waveform").hidden = missing !== null;
  by("waveform-note").hidden = missing === null;
  say(by("waveform-note"), missing);
  say(by("about"), about);
}

function takeFirst(files) {
  if (running || recording) return;
  if (!files.length) return showError("no_file");
  take(files[0]);
  if (files.length > 1 && file === files[0]) showError(() => text("one_file", { name: files[0].name }));
}

by("file").addEventListener("change", () => {
  if (by("file").files.length) takeFirst(by("file").files);
  by("file").value = ""; // the same file may be chosen again
});
const holdsFiles = (event) => event.dataTransfer.types.includes("Files"); // text may be dropped into a field
document.addEventListener("dragover", (event) => {
  if (!holdsFiles(event)) return;
  event.preventDefault();
  by("drop").classList.add("over");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) by("drop").classList.remove("over");
});
document.addEventListener("drop", (event) => {
  if (!holdsFiles(event)) return;
  event.preventDefault();
  by("drop").classList.remove("over");
  takeFirst(event.dataTransfer.files);
});

player.addEventListener("error", () => {
  player.hidden = true; // the browser cannot play it
  if (shown) showTranscript();
});
player.addEventListener("timeupdate", () => {
  waveform.moveTo(player.currentTime);
  transcript.moveTo(player.currentTime);
});

// -- the microphone -----------------------------------------------------------------------------------------------------------------------

function hint(name) {
  by("microphone-hint").hidden = name === null;
  say(by("microphone-hint"), name);
}

async function record() {
  hint(null);
  showError(null);
  by("record").disabled = by("transcribe").disabled = true; // while the browser asks for leave
  try {
    const most = { bytes: mostBytes(), seconds: settings.max_duration };
    const begun = await Recording.begin(most, onBlock, (why) => stopRecording(why));
    recording = begun;
    player.pause();
    file = shown = null;
    by("result").hidden = true;
    by("heard").hidden = by("waveform").hidden = false;
    player.hidden = by("waveform-note").hidden = true;
    waveform.clear();
  } catch (error) {
    if (!(error instanceof NoMicrophone)) throw error;
    hint(error.message);
  } finally {
    busy();
  }
}

function onBlock(seconds, loudest) {
  if (!recording) return;
  waveform.add(loudest);
  say(by("about"), () => text("recording_now", { time: time(seconds) }));
}

async function stopRecording(why = null) {
  if (!recording) return;
  const ended = recording;
  recording = null;
  by("record").disabled = true;
  const { file: made, silent } = await ended.end();
  busy();
  await take(made, () => text("recording_name"));
  if (why !== null) hint(why);
  else if (silent) hint("recording_silent");
}

by("record").addEventListener("click", () => (recording ? stopRecording() : record()));

// -- the transcription --------------------------------------------------------------------------------------------------------------------

/** What can be pressed just now. */
function busy() {
  say(by("record"), recording ? "record_stop" : "record");
  by("record").classList.toggle("on", recording !== null);
  by("record").disabled = running !== null;
  by("file").disabled = running !== null || recording !== null;
  by("transcribe").disabled = recording !== null;
  by("advanced").disabled = running !== null;
  const held = document.activeElement === by("transcribe") || document.activeElement === by("abort");
  by("transcribe").hidden = running !== null;
  by("abort").hidden = by("progress").hidden = running === null;
  if (held) by(running ? "abort" : "transcribe").focus();
}

/** The form's fields that go to a route, as [name, value]. What is left empty is the service's to choose. */
function fields(path, stream) {
  const given = [...new FormData(by("form"))].map(([name, value]) => [name, value.trim()]).filter(([, value]) => value);
  if (path === "/asr") return given;
  given.push(["model", "ark-asr"]);
  if (stream) return [...given, ["response_format", "json"], ["stream", "true"]];
  given.push(["response_format", "verbose_json"], ["timestamp_granularities[]", "segment"]);
  if (settings.words) given.push(["timestamp_granularities[]", "word"]);
  return given;
}

async function send() {
  showError(null);
  if (!keys.isEnough) return keys.ask("key_wanted");
  if (!file) return showError("no_recording");
  const path = by("endpoint").value;
  const stream = by("stream").checked && path !== "/asr";
  const asked = fields(path, stream); // before the form is disabled, whose fields would be left out then
  const began = performance.now();
  running = new AbortController();
  shown = null;
  by("result").hidden = !stream;
  by("result").classList.add("running");
  transcript.clear();
  clearDetails();
  busy();
  say(by("status"), "waiting");
  try {
    const answer = await transcribe(path, file, asked, running.signal, stream ? (piece) => transcript.add(piece) : null);
    shown = { answer, transcript: understood(answer), seconds: (performance.now() - began) / 1000 };
    showTranscript();
    say(by("status"), "done");
  } catch (error) {
    by("result").hidden = true;
    if (error.name === "AbortError") {
      say(by("status"), "aborted");
    } else {
      say(by("status"), "failed");
      tell(error);
      if (error.status === 401) keys.ask("error_key");
    }
  } finally {
    running = null;
    by("result").classList.remove("running");
    busy();
  }
}

function clearDetails() {
  for (const id of ["warnings", "legend", "save-note"]) by(id).hidden = true;
  by("figures").replaceChildren();
  by("raw").textContent = "";
  say(by("copied"), null);
}

/** Show the transcript that there is, in the page's language. */
function showTranscript() {
  const { answer, transcript: said, seconds } = shown;
  clearDetails();
  by("result").hidden = false;
  const threshold = by("threshold").valueAsNumber || 0;
  const marked = transcript.show(said, threshold, !player.hidden);
  by("legend").hidden = !marked;
  say(by("legend-text"), () => text("legend", { percent: percent(threshold) }));
  by("warnings").hidden = !said.warnings.length;
  by("warnings").replaceChildren(...said.warnings.map((warning) => item("li", warning)));
  const figures = [
    ["figure_audio", said.seconds, (value) => text("seconds_passed", { seconds: value.toFixed(2) })],
    ["figure_client", seconds, (value) => text("seconds_passed", { seconds: value.toFixed(2) })],
    ["figure_server", said.latency, (value) => text("seconds_passed", { seconds: value.toFixed(2) })],
    ["figure_prompt", said.promptTokens, String],
    ["figure_language", said.language, String],
  ];
  by("figures").replaceChildren(...figures.filter(([, value]) => value !== null).map(([name, value, shape]) => {
    const pair = document.createElement("div");
    pair.append(item("dt", text(name)), item("dd", shape(value)));
    return pair;
  }));
  by("raw").textContent = JSON.stringify(answer, null, 2);
  by("save-note").hidden = said.segments.length > 0 || !said.text;
  for (const button of document.querySelectorAll("[data-save]")) {
    button.disabled = ["srt", "vtt"].includes(button.dataset.save) && !said.segments.length;
  }
}

function item(kind, content) {
  const element = document.createElement(kind);
  element.textContent = content;
  return element;
}

by("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!running && !recording) send();
});
by("form").addEventListener("invalid", () => { by("advanced").parentElement.open = true; }, true); // else the browser could not show it
by("abort").addEventListener("click", () => running?.abort());
by("copy").addEventListener("click", async () => {
  if (shown) say(by("copied"), (await copy(shown.transcript.text)) ? "copied" : "not_copied");
});
for (const button of document.querySelectorAll("[data-save]")) {
  const kind = button.dataset.save;
  button.addEventListener("click", () => shown && save(kind, written(kind, shown.transcript, shown.answer), file?.name ?? ""));
}
by("threshold").addEventListener("change", () => shown && showTranscript());
by("preset").addEventListener("change", () => {
  for (const [name, value] of Object.entries(PRESETS[by("preset").value] ?? {})) by("form").elements[name].value = value;
});
for (const name of Object.keys(PRESETS.likely)) {
  by("form").elements[name].addEventListener("input", () => { by("preset").value = "own"; });
}
by("endpoint").addEventListener("change", () => { by("stream").disabled = by("endpoint").value === "/asr"; });

// -- languages and the beginning ----------------------------------------------------------------------------------------------------------

function relabel() {
  for (const [id, code] of [["english", "en"], ["chinese", "zh"]]) by(id).setAttribute("aria-pressed", String(current() === code));
  waveform.relabel();
  service.put();
  if (shown) showTranscript();
}

for (const [id, code] of [["english", "en"], ["chinese", "zh"]]) {
  by(id).addEventListener("click", () => {
    speak(code);
    relabel();
  });
}

/** Ask the service what it serves; a key that it does not know is told at once. */
async function greet() {
  showError(null);
  try {
    await service.model();
  } catch (error) {
    if (error.status === 401) keys.ask("error_key");
    else tell(error);
  }
}

async function begin() {
  put();
  relabel();
  busy();
  by("address").textContent = new URL(".", document.baseURI).href;
  try {
    settings = await json("page/settings.json");
  } catch (error) {
    return tell(error);
  }
  by("form").elements.max_new_tokens.max = by("form").elements.max_new_tokens.placeholder = settings.max_new_tokens;
  keys.show(settings.keys);
  service.check();
  if (keys.isEnough) await greet();
}

begin();

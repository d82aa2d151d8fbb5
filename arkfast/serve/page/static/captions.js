// A transcript as a file: plain text, SubRip, WebVTT, or the service's own answer.

const KINDS = { txt: "text/plain", srt: "application/x-subrip", vtt: "text/vtt", json: "application/json" };

/** 3723.5 as 01:02:03.500, with the sign that the format has before milliseconds. */
function clock(seconds, sign) {
  const all = Math.round(seconds * 1000);
  const [hours, minutes, whole, rest] = [Math.floor(all / 3600000), Math.floor(all / 60000) % 60, Math.floor(all / 1000) % 60, all % 1000];
  const two = (number) => String(number).padStart(2, "0");
  return `${two(hours)}:${two(minutes)}:${two(whole)}${sign}${String(rest).padStart(3, "0")}`;
}

/** A caption is one line: an empty one would end it, and an arrow begin another. */
const line = (said) => said.trim().replace(/\s+/g, " ").replaceAll("-->", "->");

const ESCAPED = { "&": "&amp;", "<": "&lt;", ">": "&gt;" };

function captions(segments, sign, escaped) {
  const said = segments.filter((segment) => segment.text.trim());
  return said.map((segment, i) => {
    const shown = escaped ? line(segment.text).replace(/[&<>]/g, (letter) => ESCAPED[letter]) : line(segment.text);
    return `${escaped ? "" : `${i + 1}\n`}${clock(segment.start, sign)} --> ${clock(segment.end, sign)}\n${shown}\n`;
  });
}

/** The text of a file. kind: txt, srt, vtt or json; transcript as understood() gives it; answer: the service's. */
export function written(kind, transcript, answer) {
  if (kind === "txt") return `${transcript.text}\n`;
  if (kind === "json") return `${JSON.stringify(answer, null, 2)}\n`;
  if (kind === "srt") return captions(transcript.segments, ",", false).join("\n");
  return ["WEBVTT\n", ...captions(transcript.segments, ".", true)].join("\n");
}

/** Let the browser save a text. */
export function save(kind, content, recording) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type: `${KINDS[kind]};charset=utf-8` }));
  link.download = `${recording.replace(/\.[^.]*$/, "") || "transcript"}.${kind}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000); // the browser reads it after the click
}

/** Copy a text. Returns whether the browser let the page. */
export async function copy(content) {
  try {
    await navigator.clipboard.writeText(content);
    return true;
  } catch { // refused, or not there because the page did not come over https
    const area = document.createElement("textarea");
    area.value = content;
    area.className = "unseen";
    const before = document.activeElement;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    before?.focus();
    return done;
  }
}

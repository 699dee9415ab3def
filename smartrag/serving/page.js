"use strict";
// What a policy or a passage wrote is untrusted: it becomes text and nothing else.

const KEY = "smartrag-token", KEPT = 20;
const [form, token, question, send, stop, episodes] =
  ["ask", "token", "question", "send", "stop", "episodes"].map(id => document.getElementById(id));
let asking = null;

token.value = sessionStorage.getItem(KEY) ?? "";
(token.value ? question : token).focus();

form.addEventListener("submit", event => {
  event.preventDefault();
  if (!asking && question.value.trim()) ask(token.value.trim(), question.value.trim());
});
question.addEventListener("keydown", event => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    form.requestSubmit();
  }
});
stop.addEventListener("click", () => asking?.abort());

async function ask(key, text) {
  const began = performance.now(), shown = article(text);
  asking = new AbortController();
  busy(true);
  try {
    const reply = await fetch("/v1/chat/completions", {
      method: "POST",
      headers: { "Authorization": `Bearer ${key}`, "Content-Type": "application/json" },
      body: JSON.stringify({
        model: document.body.dataset.model, stream: true, stream_options: { include_usage: true },
        messages: [{ role: "user", content: text }],
      }),
      signal: asking.signal,
    });
    if (!reply.ok) {
      if (reply.status === 401) token.focus();
      throw new Error((await reply.json()).error.message);
    }
    sessionStorage.setItem(KEY, key);
    let whole = null, usage = null;
    for await (const chunk of chunks(reply.body)) {
      if (chunk.error) throw new Error(chunk.error.message);
      const { turn, ...rest } = chunk.smartrag ?? {};
      if (turn) shown.moves.append(move(turn, chunk.choices[0].delta.refusal));
      if (rest.end) whole = rest;
      usage = chunk.usage ?? usage;
    }
    shown.outcome.textContent = outcome(whole, usage, performance.now() - began);
  } catch (error) {
    const said = error.name === "AbortError" ? "stopped" : error instanceof TypeError ? "the server is out of reach" : error.message;
    shown.moves.append(made("li", "none", made("span", "act", "no answer"), made("bdi", "text", said)));
    shown.outcome.textContent = "";
  }
  shown.outcome.classList.remove("waits");
  asking = null;
  busy(false);
}

async function* chunks(body) {
  const reader = body.getReader(), decoder = new TextDecoder();
  let rest = "", whole = false;
  for (;;) {
    const { value, done } = await reader.read();
    if (done && !whole) throw new Error("the server broke off");
    if (done) return;
    const events = (rest + decoder.decode(value, { stream: true })).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      whole = event === "data: [DONE]";
      if (!whole) yield JSON.parse(event.slice("data: ".length));
    }
  }
}

function article(text) {
  const moves = made("ol", "moves"), outcome = made("p", "outcome waits", "asking");
  episodes.prepend(made("article", "", made("h2", "", made("bdi", "", text)), moves, outcome));
  while (episodes.children.length > KEPT) episodes.lastElementChild.remove();
  return { moves, outcome };
}

function move(turn, refusal) {
  const known = { search: "searches for", answer: "answers" }[turn.action];
  const kind = known ? turn.action : "none";
  const act = (known ?? refusal ?? turn.action) + (turn.forced ? " (forced: no search is left to it)" : "");
  const item = made("li", kind, made("span", "act", act), made("bdi", "text", turn.text));
  for (const passage of turn.passages ?? []) {
    const [title, ...text] = passage.contents.split("\n");
    const score = made("span", "score", passage.score.toFixed(2));
    score.title = `passage ${spelledOut(passage.id)}, score`;
    item.append(made("blockquote", "", score, made("bdi", "", made("b", "", title), ` ${text.join("\n")}`)));
  }
  if (turn.passages?.length === 0) item.append(made("p", "note", "nothing found"));
  return item;
}

function outcome(whole, usage, milliseconds) {
  const retrievals = `${whole.retrievals} retrieval${whole.retrievals === 1 ? "" : "s"}`;
  return [retrievals, `${usage.prompt_tokens} tokens read, ${usage.completion_tokens} written`,
    `${(milliseconds / 1000).toFixed(2)} s`].join(" · ");
}

function busy(yes) {
  send.disabled = yes;
  stop.hidden = !yes;
}

function made(name, classes, ...children) {
  const element = document.createElement(name);
  if (classes) element.className = classes;
  element.append(...children.map(child => typeof child === "string" ? spelledOut(child) : child));
  return element;
}

// Control characters, halves of surrogate pairs and reversals of direction.
function spelledOut(text) {
  return text.replace(/[\0-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]/gu,
    found => `\\u${found.codePointAt(0).toString(16).padStart(4, "0")}`);
}

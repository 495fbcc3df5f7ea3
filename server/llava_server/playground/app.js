// The playground: brings the page's parts together. The conversation is a list of turns; one answer at a time.

import { ApiError, fetchModels, streamChat } from "./api.js";
import { byId as $, element } from "./dom.js";
import { forget } from "./images.js";
import { apiKey, chosenModel, keepApiKey, offerModels, sampling, systemMessage, watchSettings } from "./settings.js";
import { followEnd, keepAtEnd } from "./scroll.js";
import { Tray } from "./tray.js";
import { Turn } from "./turn.js";

const MODELS_RETRY_MS = 3000;
const IDEAS = ["Describe the picture in one sentence.", "How many objects are there?", "What does the text say?"];
const STOPPED = ["stopped", "You stopped this answer"];
const REMARKS = { length: ["cut off", "The answer reached the longest length that the settings or the model allow"] };

const tray = new Tray($("thumbs"), { onChange: showIdeas, onRefuse: notify });
let turns = [];
let running = null; // AbortController of the answer that is being streamed

function notify(message) {
  $("notice").textContent = message;
  $("notice").hidden = message === "";
}

function showIdeas() {
  $("ideas").hidden = turns.length > 0 || tray.pictures.length === 0;
  focusQuestion();
}

async function loadModels() {
  try {
    const names = await fetchModels(apiKey());
    offerModels(names);
    $("key-form").hidden = true;
    if (!names.length) setTimeout(loadModels, MODELS_RETRY_MS);
  } catch (error) {
    offerModels([]);
    if (error.status === 401) askForKey();
    else setTimeout(loadModels, MODELS_RETRY_MS);
  }
}

function askForKey() {
  $("key-form").hidden = false;
  $("key").value = "";
  $("key").focus();
}

async function ask(question) {
  if (running || question.trim() === "") return;
  if (!chosenModel()) return notify("No model is running yet. As soon as a worker has loaded one, you can ask.");
  notify("");
  const turn = new Turn({ question: question.trim(), pictures: tray.take(), onEnlarge: enlarge });
  turns.push(turn);
  $("log").append(turn.element);
  $("question").value = "";
  fitQuestion();
  $("welcome").hidden = true;
  showIdeas();
  await answer(turn);
}

/** Streams the answer to a turn; every way out ends the turn and frees the page for the next question. */
async function answer(turn) {
  if (running) return;
  const earlier = turns.slice(0, turns.indexOf(turn)).filter((one) => one.isAnswered);
  turn.begin();
  const request = requestFor([...earlier, turn]);
  running = new AbortController();
  showRunning(true);
  keepAtEnd({ force: true });
  try {
    const reason = await stream(turn, request);
    turn.end(request, REMARKS[reason]);
    announce(`Answer: ${turn.answer}`);
  } catch (error) {
    if (error.name === "AbortError") {
      turn.end(request, STOPPED);
      announce("Stopped.");
    } else {
      fail(turn, request, error);
    }
  } finally {
    running = null;
    showRunning(false);
    keepAtEnd();
  }
}

async function stream(turn, request) {
  let reason = "";
  for await (const chunk of streamChat(request.body, apiKey(), running.signal)) {
    turn.take(chunk);
    reason = chunk.choices?.[0]?.finish_reason ?? reason;
    keepAtEnd();
  }
  return reason;
}

function fail(turn, request, error) {
  if (!(error instanceof ApiError)) console.error(error);
  const message = error instanceof ApiError ? error.message : "The page made a mistake: its console says more.";
  turn.fail(request, message, () => answer(turn));
  announce("");
  if (error.status === 401) askForKey();
}

function requestFor(included) {
  const system = systemMessage();
  const messages = system ? [{ role: "system", content: system }] : [];
  for (const turn of included) messages.push(...turn.messages());
  const body = { model: chosenModel(), messages, ...sampling(), stream: true, stream_options: { include_usage: true } };
  return { body, pictures: included.flatMap((turn) => turn.pictures), usesKey: apiKey() !== "" };
}

function showRunning(isRunning) {
  $("send").hidden = isRunning;
  $("stop").hidden = !isRunning;
  if (isRunning) announce("Answering.");
  focusQuestion();
}

/** Not on touch screens: there the keyboard would cover what the reader looks at. */
function focusQuestion() {
  if (matchMedia("(pointer: fine)").matches) $("question").focus({ preventScroll: true });
}

function announce(text) {
  $("status").textContent = text;
}

function enlarge(picture) {
  const shown = $("lightbox").querySelector("img");
  shown.src = picture.preview;
  shown.alt = picture.name;
  $("lightbox").showModal();
}

function newChat() {
  running?.abort();
  for (const turn of turns) turn.pictures.forEach(forget);
  turns = [];
  $("log").replaceChildren();
  tray.clear();
  notify("");
  announce("New chat.");
  $("welcome").hidden = false;
  showIdeas();
}

function fitQuestion() {
  const field = $("question");
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight}px`;
}

function wire() {
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    ask($("question").value);
  });
  $("question").addEventListener("input", fitQuestion);
  $("question").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    ask($("question").value);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !$("lightbox").open) running?.abort();
  });
  $("stop").addEventListener("click", () => running?.abort());
  $("new-chat").addEventListener("click", newChat);
  $("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    keepApiKey($("key").value.trim());
    loadModels();
  });
  for (const button of $("examples").querySelectorAll("button")) {
    button.addEventListener("click", () => tray.addFrom(button.querySelector("img").src));
  }
  for (const idea of IDEAS) {
    const button = element("button", { type: "button", textContent: idea });
    button.addEventListener("click", () => ask(idea));
    $("ideas").append(button);
  }
}

watchSettings();
wire();
tray.listen({ input: $("files"), curtain: $("curtain") });
followEnd($("to-end"));
loadModels();

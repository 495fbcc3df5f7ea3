// The playground app. A conversation is a list of turns; only one response is generated at a time.

import { ApiError, fetchModels, streamChat } from "./api.js";
import { byId as $, element } from "./dom.js";
import { releaseImage } from "./images.js";
import { apiKey, sampling, saveApiKey, selectedModel, showModels, systemMessage, watchSettings } from "./settings.js";
import { followEnd, scrollToEnd } from "./scroll.js";
import { Tray } from "./tray.js";
import { Turn } from "./turn.js";

const MODELS_RETRY_MS = 3000;
const IDEAS = ["Describe the picture in one sentence.", "How many objects are there?", "What does the text say?"];
const STOPPED = ["stopped", "You stopped this response"];
const REMARKS = { length: ["truncated", "The response reached the length limit set in the settings or by the model"] };

const tray = new Tray($("thumbs"), { onChange: showIdeas, onReject: notify });
let turns = [];
let running = null; // AbortController of the response that is being streamed

function notify(message) {
  $("notice").textContent = message;
  $("notice").hidden = message === "";
}

function showIdeas() {
  $("ideas").hidden = turns.length > 0 || tray.images.length === 0;
  focusQuestion();
}

async function loadModels() {
  try {
    const names = await fetchModels(apiKey());
    showModels(names);
    $("key-form").hidden = true;
    if (!names.length) setTimeout(loadModels, MODELS_RETRY_MS);
  } catch (error) {
    showModels([]);
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
  if (!selectedModel()) return notify("No model is running yet. Wait until a worker has loaded a model.");
  notify("");
  const turn = new Turn({ question: question.trim(), images: tray.take(), onEnlarge: enlarge });
  turns.push(turn);
  $("log").append(turn.element);
  $("question").value = "";
  fitQuestion();
  $("welcome").hidden = true;
  showIdeas();
  await respond(turn);
}

/** Streams the response to a turn. Always ends the turn and re-enables the form, even if it fails. */
async function respond(turn) {
  if (running) return;
  const earlier = turns.slice(0, turns.indexOf(turn)).filter((earlierTurn) => earlierTurn.isComplete);
  turn.begin();
  const request = requestFor([...earlier, turn]);
  running = new AbortController();
  showRunning(true);
  scrollToEnd({ force: true });
  try {
    const reason = await stream(turn, request);
    turn.end(request, REMARKS[reason]);
    announce(`Response: ${turn.response}`);
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
    scrollToEnd();
  }
}

async function stream(turn, request) {
  let reason = "";
  for await (const chunk of streamChat(request.body, apiKey(), running.signal)) {
    turn.append(chunk);
    reason = chunk.choices?.[0]?.finish_reason ?? reason;
    scrollToEnd();
  }
  return reason;
}

function fail(turn, request, error) {
  if (!(error instanceof ApiError)) console.error(error);
  const message = error instanceof ApiError ? error.message : "This page encountered an internal error. See the browser console.";
  turn.fail(request, message, () => respond(turn));
  announce("");
  if (error.status === 401) askForKey();
}

function requestFor(included) {
  const system = systemMessage();
  const messages = system ? [{ role: "system", content: system }] : [];
  for (const turn of included) messages.push(...turn.messages());
  const body = { model: selectedModel(), messages, ...sampling(), stream: true, stream_options: { include_usage: true } };
  return { body, images: included.flatMap((turn) => turn.images), usesKey: apiKey() !== "" };
}

function showRunning(isRunning) {
  $("send").hidden = isRunning;
  $("stop").hidden = !isRunning;
  if (isRunning) announce("Generating a response.");
  focusQuestion();
}

/** Focuses the question field, except on touch screens, where the keyboard would cover the conversation. */
function focusQuestion() {
  if (matchMedia("(pointer: fine)").matches) $("question").focus({ preventScroll: true });
}

function announce(text) {
  $("status").textContent = text;
}

function enlarge(image) {
  const shown = $("lightbox").querySelector("img");
  shown.src = image.preview;
  shown.alt = image.name;
  $("lightbox").showModal();
}

function newChat() {
  running?.abort();
  for (const turn of turns) turn.images.forEach(releaseImage);
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

function addListeners() {
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
    saveApiKey($("key").value.trim());
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
addListeners();
tray.listen({ input: $("files"), curtain: $("curtain") });
followEnd($("to-end"));
loadModels();

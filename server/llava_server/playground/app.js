// The playground app: connects the parts of the page.

import { fetchModels } from "./api.js";
import { ChatList } from "./chat_list.js";
import { Conversation } from "./conversation.js";
import { button, byId as $ } from "./dom.js";
import { openLightbox, watchLightbox } from "./lightbox.js";
import { parseSchema, selectedFormat, watchFormat } from "./output_format.js";
import { followEnd } from "./scroll.js";
import {
  apiKey,
  parameters,
  saveApiKey,
  selectedModels,
  showModels,
  wantsProbabilities,
  watchSettings,
} from "./settings.js";
import { watchTheme } from "./theme.js";
import { Tray } from "./tray.js";

const MODELS_RETRY_MS = 3000;
const IDEAS = ["Describe the picture in one sentence.", "How many objects are there?", "What does the text say?"];

const tray = new Tray($("thumbs"), { onChange: showIdeas, onReject: notify, onMove: announce });
const conversation = new Conversation($("log"), {
  apiKey,
  hasModel,
  choices: () => ({ models: selectedModels(), parameters: parameters(), wantsTokens: wantsProbabilities() }),
  isDemo: "demo" in document.documentElement.dataset,
  onSave: (chat) => chats.save(chat),
  onRunning: showRunning,
  announce,
  notify,
  onUnauthorized: askForKey,
  onEnlarge: openLightbox,
});
const chats = new ChatList({ onOpen: showChat, isBusy: () => conversation.isBusy, notify });

function notify(message) {
  $("notice").textContent = message;
  $("notice").hidden = message === "";
}

function announce(text) {
  $("status").textContent = text;
}

function showIdeas() {
  $("ideas").hidden = !conversation.isEmpty || tray.images.length === 0;
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

function hasModel() {
  const isSelected = selectedModels().length > 0;
  if (!isSelected) notify("No model is running yet. Wait until a worker has loaded a model.");
  return isSelected;
}

function ask(text) {
  const question = text.trim();
  if (conversation.isRunning || question === "") return;
  if (!hasModel()) return;
  const format = selectedFormat();
  const problem = format.kind === "schema" ? parseSchema(format.schema).problem : "";
  notify(problem && `The JSON schema is invalid. ${problem}`);
  if (problem) return;
  $("question").value = "";
  fitQuestion();
  $("welcome").hidden = true;
  const images = tray.take();
  conversation.ask(question, images, format);
  showIdeas();
}

function showChat(chat, options) {
  conversation.show(chat, options);
  $("welcome").hidden = chat.turns.length > 0;
  showIdeas();
}

function newChat() {
  tray.take();
  notify("");
  chats.create();
  announce("New chat.");
}

function showRunning(isRunning) {
  $("send").hidden = isRunning;
  $("stop").hidden = !isRunning;
  if (isRunning) announce("Generating a response.");
  focusQuestion();
}

/** Focuses the question field, except on touch screens, where the keyboard would cover the conversation. */
function focusQuestion() {
  const isMoving = document.activeElement?.classList.contains("move"); // sorting images with the keyboard
  if (matchMedia("(pointer: fine)").matches && !isMoving && $("key-form").hidden)
    $("question").focus({ preventScroll: true });
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
    const closesSomething = $("lightbox").open || document.querySelector(":popover-open");
    if (event.key === "Escape" && !closesSomething) conversation.stop();
  });
  $("stop").addEventListener("click", () => conversation.stop());
  $("new-chat").addEventListener("click", newChat);
  $("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    saveApiKey($("key").value.trim());
    loadModels();
  });
  for (const example of $("examples").querySelectorAll("button")) {
    example.addEventListener("click", () => tray.addFrom(example.querySelector("img").src));
  }
  $("ideas").append(...IDEAS.map((idea) => button(idea, () => ask(idea), { className: "" })));
}

watchSettings();
watchFormat();
watchLightbox();
watchTheme($("theme"));
addListeners();
tray.listen({ input: $("files"), curtain: $("curtain") });
followEnd($("to-end"));
loadModels();
await chats.start();

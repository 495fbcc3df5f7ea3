// The user's settings: model, sampling and API key. They are stored for this tab only, in sessionStorage.

import { byId as field } from "./dom.js";

const DEFAULTS = { temperature: "0", "max-tokens": "", system: "" };
const KEY = "llava.key";
const MODEL = "llava.model";


/** Shows the stored settings and stores every change. */
export function watchSettings() {
  for (const [id, standard] of Object.entries(DEFAULTS)) {
    field(id).value = sessionStorage.getItem(`llava.${id}`) ?? standard;
    field(id).addEventListener("input", () => {
      sessionStorage.setItem(`llava.${id}`, field(id).value);
      showTemperature();
    });
  }
  field("settings-reset").addEventListener("click", () => {
    for (const [id, standard] of Object.entries(DEFAULTS)) {
      field(id).value = standard;
      sessionStorage.removeItem(`llava.${id}`);
    }
    showTemperature();
  });
  field("model").addEventListener("change", () => sessionStorage.setItem(MODEL, field("model").value));
  showTemperature();
}

function showTemperature() {
  field("temperature-value").value = field("temperature").value;
}

/** Returns the sampling parameters for a request. Empty fields are omitted, so that the server's defaults apply. */
export function sampling() {
  const parameters = { temperature: Number(field("temperature").value) };
  const maxTokens = Number(field("max-tokens").value);
  if (field("max-tokens").value.trim() !== "") parameters.max_tokens = maxTokens;
  return parameters;
}

export function systemMessage() {
  return field("system").value.trim();
}

export function selectedModel() {
  return field("model").value;
}

/** Fills the model list and keeps the selected model if it is still served. */
export function showModels(names) {
  const picker = field("model");
  const wanted = picker.value || sessionStorage.getItem(MODEL);
  const shown = names.length ? names : [""];
  picker.replaceChildren(...shown.map((name) => new Option(name || "no model is running", name)));
  if (names.includes(wanted)) picker.value = wanted;
  picker.disabled = names.length === 0;
}

export function apiKey() {
  return sessionStorage.getItem(KEY) ?? "";
}

export function saveApiKey(key) {
  sessionStorage.setItem(KEY, key);
}

// What the user chose: model, sampling and API key. Kept for this tab only; the key never leaves sessionStorage.

import { byId as field } from "./dom.js";

const DEFAULTS = { temperature: "0", "max-tokens": "", system: "" };
const KEY = "llava.key";
const MODEL = "llava.model";


/** Shows the stored choices and keeps every later one. */
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

/** The part of a request that the settings decide; what is left empty is left to the server. */
export function sampling() {
  const chosen = { temperature: Number(field("temperature").value) };
  const maxTokens = Number(field("max-tokens").value);
  if (field("max-tokens").value.trim() !== "") chosen.max_tokens = maxTokens;
  return chosen;
}

export function systemMessage() {
  return field("system").value.trim();
}

export function selectedModel() {
  return field("model").value;
}

/** Fills the picker and keeps the choice where the model is still served. */
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

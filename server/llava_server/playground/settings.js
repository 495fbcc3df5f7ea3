// The user's settings: models, sampling and API key. They are stored for this tab only, in sessionStorage.

import { byId as field } from "./dom.js";

const DEFAULTS = { temperature: "0", "max-tokens": "", system: "" };
const KEY = "llava.key";
const PROBABILITIES = "llava.probabilities";
const PICKERS = { model: "no model is running", "second-model": "off" }; // and the text of their empty option

/** Shows the stored settings and stores every change. */
export function watchSettings() {
  for (const [id, standard] of Object.entries(DEFAULTS)) {
    field(id).value = sessionStorage.getItem(`llava.${id}`) ?? standard;
    field(id).addEventListener("input", () => {
      sessionStorage.setItem(`llava.${id}`, field(id).value);
      showTemperature();
    });
  }
  const probabilities = field("probabilities");
  probabilities.checked = sessionStorage.getItem(PROBABILITIES) === "on";
  probabilities.addEventListener("change", () =>
    sessionStorage.setItem(PROBABILITIES, probabilities.checked ? "on" : "off"),
  );
  field("settings-reset").addEventListener("click", reset);
  for (const id of Object.keys(PICKERS)) {
    field(id).addEventListener("change", () => sessionStorage.setItem(`llava.${id}`, field(id).value));
  }
  showTemperature();
}

function reset() {
  for (const [id, standard] of Object.entries(DEFAULTS)) {
    field(id).value = standard;
    sessionStorage.removeItem(`llava.${id}`);
  }
  field("probabilities").checked = false;
  sessionStorage.removeItem(PROBABILITIES);
  showTemperature();
}

function showTemperature() {
  field("temperature-value").value = field("temperature").value;
}

/** @returns {import("./response.js").Parameters} */
export function parameters() {
  const maxTokens = field("max-tokens").value.trim();
  return {
    temperature: Number(field("temperature").value),
    maxTokens: maxTokens === "" ? null : Number(maxTokens),
    system: field("system").value.trim(),
  };
}

export function wantsProbabilities() {
  return field("probabilities").checked;
}

/** Returns the models for the next question: the selected one, and the one to compare it with, if any. */
export function selectedModels() {
  return [field("model").value, field("second-model").value].filter((name) => name !== "");
}

/** Fills the model lists and keeps the selected models if they are still served. */
export function showModels(names) {
  for (const [id, emptyText] of Object.entries(PICKERS)) {
    const picker = field(id);
    const wanted = picker.value || sessionStorage.getItem(`llava.${id}`);
    const shown = names.length && id === "model" ? names : ["", ...names];
    picker.replaceChildren(...shown.map((name) => new Option(name || emptyText, name)));
    if (names.includes(wanted)) picker.value = wanted;
    picker.disabled = names.length === 0;
  }
}

export function apiKey() {
  return sessionStorage.getItem(KEY) ?? "";
}

export function saveApiKey(key) {
  sessionStorage.setItem(KEY, key);
}

// Stores chats in this browser, in IndexedDB. If the database is unavailable, chats are kept until the page is closed.
//
// Titles are stored separately, so that the list of chats can be read without their images.
//
// Several tabs can have the same chat open. Each stored chat has a revision, which is checked in the transaction that
// replaces the chat, so that no tab overwrites what another one has stored. A BroadcastChannel reports changes to the
// other tabs. It works on pages that were loaded over http too, unlike locks (navigator.locks).

const DATABASE = "llava-serve";
const VERSION = 1;
const CHANNEL = "llava-serve.chats";

/**
 * @typedef {object} Chat
 * @property {string} id
 * @property {string} title
 * @property {number} updatedAt  milliseconds since 1970
 * @property {number} revision  how often the chat has been stored; 0 for a new chat
 * @property {import("./turn.js").Turn[]} turns
 */

/** A message for the user about why a chat could not be stored. */
export class StorageError extends Error {}

export class ChatStore {
  #database = null;
  #memory = new Map(); // the chats, if there is no database
  #channel = null;
  #onChange;

  /** onChange() is called after another tab has stored or deleted chats. */
  constructor(onChange = () => {}) {
    this.#onChange = onChange;
  }

  /** Opens the database. @returns {Promise<string>} why chats cannot be stored, or an empty string */
  async open() {
    try {
      const request = indexedDB.open(DATABASE, VERSION);
      request.onupgradeneeded = () => {
        request.result.createObjectStore("chats", { keyPath: "id" });
        request.result.createObjectStore("titles", { keyPath: "id" });
      };
      this.#database = await resultOf(request);
      this.#database.onversionchange = () => this.#database.close(); // a newer version of the page is open
      this.#channel = new BroadcastChannel(CHANNEL);
      this.#channel.onmessage = () => this.#onChange();
      return "";
    } catch (error) {
      return `This browser cannot store chats (${error.message || error.name}). They are lost when you close the page.`;
    }
  }

  /** Returns { id, title, updatedAt, revision } for each chat, the latest first. */
  async titles() {
    const found = this.#database ? await resultOf(this.#read("titles").getAll()) : [...this.#memory.values()];
    return found.sort((left, right) => right.updatedAt - left.updatedAt);
  }

  /** Returns a chat, or undefined if it does not exist. */
  async get(id) {
    return this.#database ? resultOf(this.#read("chats").get(id)) : this.#memory.get(id);
  }

  /**
   * Stores a chat and increments its revision, unless another tab has changed or deleted it in the meantime. The
   * previous call for this chat must have ended.
   *
   * @returns {Promise<"stored" | "changed" | "deleted">}
   * @throws {StorageError} if there is no space left
   */
  async put(chat) {
    const next = { ...chat, revision: chat.revision + 1 };
    const { id, title, updatedAt, revision } = next;
    let outcome = outcomeOf(chat, this.#memory.get(id));
    await this.#write((chats, titles) => {
      titles.get(id).onsuccess = ({ target }) => {
        outcome = outcomeOf(chat, target.result);
        if (outcome !== "stored") return;
        chats.put(next);
        titles.put({ id, title, updatedAt, revision });
      };
    });
    if (outcome !== "stored") return outcome;
    if (!this.#database) this.#memory.set(id, structuredClone(next));
    chat.revision = revision;
    return outcome;
  }

  async remove(id) {
    await this.#write((chats, titles) => {
      chats.delete(id);
      titles.delete(id);
    });
    this.#memory.delete(id);
  }

  async clear() {
    await this.#write((chats, titles) => {
      chats.clear();
      titles.clear();
    });
    this.#memory.clear();
  }

  #read(name) {
    return this.#database.transaction(name).objectStore(name);
  }

  async #write(change) {
    if (!this.#database) return;
    const transaction = this.#database.transaction(["chats", "titles"], "readwrite");
    change(transaction.objectStore("chats"), transaction.objectStore("titles"));
    await new Promise((resolve, reject) => {
      transaction.oncomplete = resolve;
      transaction.onabort = () => reject(storageError(transaction.error));
    });
    this.#channel.postMessage(null);
  }
}

/** Returns what happens to a chat if `current` is the stored one, or undefined if there is none. */
function outcomeOf({ revision }, current) {
  if (!current) return revision === 0 ? "stored" : "deleted";
  return current.revision === revision ? "stored" : "changed";
}

function resultOf(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

function storageError(error) {
  const isFull = error?.name === "QuotaExceededError";
  const reason = isFull
    ? "This browser has no space left for chats."
    : `This browser cannot store the chat (${error?.message}).`;
  return new StorageError(`${reason} Export your chats, and delete those that you do not need.`);
}

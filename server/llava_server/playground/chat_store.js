// Stores chats in this browser, in IndexedDB. If the database is unavailable, chats are kept until the page is closed.
//
// Titles are stored separately, so that the list of chats can be read without their images.

const DATABASE = "llava-serve";
const VERSION = 1;

/**
 * @typedef {object} Chat
 * @property {string} id
 * @property {string} title
 * @property {number} updatedAt  milliseconds since 1970
 * @property {import("./turn.js").Turn[]} turns
 */

/** A message for the user about why a chat could not be stored. */
export class StorageError extends Error {}

export class ChatStore {
  #database = null;
  #memory = new Map(); // the chats, if there is no database

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
      return "";
    } catch (error) {
      return `This browser cannot store chats (${error.message || error.name}). They are lost when you close the page.`;
    }
  }

  /** Returns { id, title, updatedAt } for each chat, the latest first. */
  async titles() {
    const found = this.#database ? await resultOf(this.#read("titles").getAll()) : [...this.#memory.values()];
    return found.sort((left, right) => right.updatedAt - left.updatedAt);
  }

  /** Returns a chat, or undefined if it does not exist. */
  async get(id) {
    return this.#database ? resultOf(this.#read("chats").get(id)) : this.#memory.get(id);
  }

  /** Stores a chat. @throws {StorageError} if there is no space left */
  async put(chat) {
    const { id, title, updatedAt } = chat;
    await this.#write((chats, titles) => {
      chats.put(chat);
      titles.put({ id, title, updatedAt });
    });
    if (!this.#database) this.#memory.set(id, structuredClone(chat));
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
  }
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

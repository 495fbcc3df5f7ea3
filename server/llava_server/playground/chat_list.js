// The list of stored chats, and the buttons to export, import and delete them.

import { ImportError, download, newId, readChats } from "./chat_file.js";
import { ChatStore, StorageError } from "./chat_store.js";
import { button, byId, element } from "./dom.js";

const CURRENT = "llava.chat"; // the open chat of this tab
const TITLE_LENGTH = 60;
const WIDE = "(min-width: 75rem)";

export class ChatList {
  #store;
  #current = newChat();
  #notify;
  #onOpen;
  #isBusy;
  #hasFailed = false; // whether the page displays an error of the last action
  #shown = ""; // the open chat and the titles in the list, as JSON
  #saving = Promise.resolve(); // ends when the last chat was saved

  /**
   * onOpen(chat, { isUpdate }) is called to show a chat. isUpdate: it is shown already, and another tab has changed it.
   * isBusy() returns whether the user edits the chat on the page or waits for a response. notify(message) is called
   * with errors.
   */
  constructor({ onOpen, isBusy, notify }) {
    this.#store = new ChatStore(() => this.#update());
    this.#onOpen = onOpen;
    this.#isBusy = isBusy;
    this.#notify = notify;
  }

  /** Shows the stored chats, and opens the one that was open in this tab. */
  async start() {
    const problem = await this.#store.open();
    if (problem) this.#notify(problem);
    this.#addListeners();
    this.#showSidebar(matchMedia(WIDE).matches);
    const stored = await this.#store.get(sessionStorage.getItem(CURRENT) ?? "");
    this.#open(stored ?? this.#current);
    await this.#show();
  }

  /** Opens a new, empty chat. */
  create() {
    this.#open(newChat());
    this.#show();
  }

  /** Stores a chat, unless it has been deleted. If another tab has changed it, it becomes a new chat. */
  save(chat) {
    this.#saving = this.#saving.finally(() => this.#save(chat));
    return this.#saving;
  }

  async #save(chat) {
    chat.title ||= titleOf(chat.turns);
    chat.updatedAt = Date.now();
    await this.#guard(async () => {
      if ((await this.#store.put(chat)) !== "changed") return;
      Object.assign(chat, { id: newId(), title: `${chat.title} (copy)`, revision: 0 });
      if (chat === this.#current) sessionStorage.setItem(CURRENT, chat.id);
      await this.#store.put(chat);
      this.#notify("Another tab has changed this chat, so your messages are stored in a copy.");
    });
    await this.#show();
  }

  /** Shows what another tab has stored or deleted. A chat that the user is working on remains. */
  async #update() {
    const { id, revision } = this.#current;
    const entry = (await this.#store.titles()).find((title) => title.id === id);
    const stored = entry && entry.revision !== revision && (await this.#store.get(id));
    const isSame = this.#current.id === id && this.#current.revision === revision;
    if (isSame && stored && !this.#isBusy()) this.#open(stored, { isUpdate: true });
    if (isSame && !entry && revision > 0) {
      this.create();
      this.#notify("Another tab has deleted this chat.");
    }
    await this.#show();
  }

  #addListeners() {
    byId("chats-button").addEventListener("click", () => this.#showSidebar(byId("sidebar").hidden));
    // In the capturing phase, because Escape also stops the response if it does not close anything.
    document.addEventListener("keydown", (event) => this.#closeDrawer(event), { capture: true });
    byId("export-chats").addEventListener("click", async () => {
      const titles = await this.#store.titles();
      download(await Promise.all(titles.map(({ id }) => this.#store.get(id))));
    });
    byId("import-chats").addEventListener("change", (event) => this.#import(event.target));
    byId("delete-chats").addEventListener("click", async () => {
      if (!confirm("Delete all chats that are stored in this browser?")) return;
      await this.#guard(() => this.#store.clear());
      this.create();
    });
  }

  async #import(input) {
    const [file] = input.files;
    await this.#guard(async () => {
      for (const chat of await readChats(file)) await this.#store.put(chat);
    });
    input.value = ""; // allows the same file to be selected again
    await this.#show();
  }

  /** Runs an action and shows its error message, which the next successful action hides. */
  async #guard(action) {
    try {
      await action();
      if (this.#hasFailed) this.#notify("");
      this.#hasFailed = false;
    } catch (error) {
      if (!(error instanceof StorageError || error instanceof ImportError)) throw error;
      this.#hasFailed = true;
      this.#notify(error.message);
    }
  }

  #open(chat, { isUpdate = false } = {}) {
    this.#current = chat;
    sessionStorage.setItem(CURRENT, chat.id);
    try {
      this.#onOpen(chat, { isUpdate });
    } catch (error) {
      console.error(error); // an error in this page: the other chats remain available
      this.#notify(`The chat “${chat.title}” cannot be displayed (${error.message}). Export or delete it.`);
      this.#open(newChat());
      return;
    }
    if (!isUpdate && !matchMedia(WIDE).matches) this.#showSidebar(false);
  }

  #closeDrawer(event) {
    if (event.key !== "Escape" || byId("sidebar").hidden || matchMedia(WIDE).matches) return;
    event.stopPropagation();
    this.#showSidebar(false);
    byId("chats-button").focus();
  }

  #showSidebar(isVisible) {
    byId("sidebar").hidden = !isVisible;
    byId("chats-button").setAttribute("aria-expanded", String(isVisible));
  }

  async #show() {
    const titles = await this.#store.titles();
    const shown = JSON.stringify([this.#current.id, titles.map(({ id, title }) => [id, title])]);
    if (shown === this.#shown) return; // a button of the list may have the focus
    this.#shown = shown;
    byId("chats").replaceChildren(...titles.map((entry) => this.#item(entry)));
    byId("export-chats").disabled = byId("delete-chats").disabled = titles.length === 0;
  }

  #item({ id, title }) {
    const open = button(
      title,
      async () => {
        const chat = await this.#store.get(id);
        if (chat) this.#open(chat);
        await this.#show();
      },
      { className: "chat", title },
    );
    if (id === this.#current.id) open.setAttribute("aria-current", "true");
    const save = button("⤓", async () => download([await this.#store.get(id)]), {
      className: "chat-action",
      ariaLabel: `Export ${title}`,
      title: "Export",
    });
    const remove = button("×", () => this.#remove(id, title), {
      className: "chat-action",
      ariaLabel: `Delete ${title}`,
      title: "Delete",
    });
    return element("li", {}, open, save, remove);
  }

  async #remove(id, title) {
    if (!confirm(`Delete the chat “${title}”?`)) return;
    await this.#guard(() => this.#store.remove(id));
    if (id === this.#current.id) this.create();
    else await this.#show();
  }
}

/** @returns {import("./chat_store.js").Chat} */
function newChat() {
  return { id: newId(), title: "", updatedAt: 0, revision: 0, turns: [] };
}

function titleOf(turns) {
  const [line] = (turns[0]?.question ?? "").split("\n");
  return line.length > TITLE_LENGTH ? `${line.slice(0, TITLE_LENGTH)}…` : line;
}

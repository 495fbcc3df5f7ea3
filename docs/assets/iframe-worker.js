// Runs the search in a hidden frame if the site is opened from a folder, because browsers start no workers there.
// Material for MkDocs would otherwise load a program for this purpose from unpkg.com.
if (location.protocol === "file:") {
  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.srcdoc = "<!doctype html>";
      this.scope = new Promise((resolve, reject) => {
        frame.onload = () => {
          const scope = frame.contentWindow;
          scope.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
          const script = scope.document.createElement("script");
          script.onload = () => resolve(scope);
          script.onerror = () => reject(new Error(`${url} cannot be loaded.`));
          script.src = url;
          scope.document.body.append(script);
        };
      });
      document.body.append(frame);
    }

    async postMessage(data) {
      (await this.scope).dispatchEvent(new MessageEvent("message", { data }));
    }
  };
  window.Worker = window.IFrameWorker;
}

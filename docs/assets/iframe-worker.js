// Search works on pages that are opened from a disk. Browsers run no worker there, so
// this file runs the script of a worker in a hidden frame. Elsewhere it does nothing.
// MkDocs Material looks for a file of this name and would otherwise load one from the
// network.
if (location.protocol === "file:") {
  window.IFrameWorker = class extends EventTarget {
    constructor(address) {
      super();
      this.waiting = [];
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.title = "search";
      document.body.appendChild(frame);
      const page = frame.contentDocument;
      page.open();
      page.write("<!doctype html><title>search</title>");
      page.close();
      this.inside = frame.contentWindow;
      this.inside.postMessage = (data) =>
        this.dispatchEvent(new MessageEvent("message", { data }));
      this.inside.importScripts = (...urls) =>
        urls.reduce((before, url) => before.then(() => load(page, url)), Promise.resolve());
      load(page, new URL(address, document.baseURI).href).then(() => {
        this.waiting.forEach((data) => this.send(data));
        this.waiting = null;
      });
    }
    send(data) {
      this.inside.dispatchEvent(new this.inside.MessageEvent("message", { data }));
    }
    postMessage(data) {
      this.waiting === null ? this.send(data) : this.waiting.push(data);
    }
    terminate() {
      this.inside.frameElement.remove();
    }
  };
  const load = (page, url) =>
    new Promise((done, failed) => {
      const script = page.createElement("script");
      Object.assign(script, { src: url, onload: done, onerror: failed });
      page.head.appendChild(script);
    });
  window.Worker = window.IFrameWorker;
}

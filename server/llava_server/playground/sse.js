// Server-sent events out of a fetch body. EventSource is of no use here: it cannot POST.

/**
 * Yields the data of each event; comments (pings) and other fields are left out.
 * Lines may end in LF, CR LF or CR, and characters and lines may be cut anywhere by the network.
 * @param {ReadableStream<Uint8Array>} body
 */
export async function* readEvents(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let pending = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      pending += done ? decoder.decode() : decoder.decode(value, { stream: true });
      const lines = pending.split(/\r\n|\n|\r(?!$)/); // a CR at the end may be half of a CR LF: wait for more
      pending = lines.pop();
      for (const line of lines) {
        if (line === "") {
          if (data.length) yield data.join("\n");
          data = [];
        } else if (line.startsWith("data:")) {
          data.push(line.slice(line[5] === " " ? 6 : 5));
        }
      }
      if (done) return; // an event without its blank line is incomplete: not an event
    }
  } finally {
    reader.cancel().catch(() => {}); // the body may have failed already; the reader's error was thrown above
  }
}

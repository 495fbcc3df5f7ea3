// Parser for server-sent events in a fetch body. EventSource does not support POST.

/**
 * Yields the data of each event. Comments (keepalives) and other fields are skipped.
 * Lines may end in LF, CR LF or CR. Chunks may end inside a line or a UTF-8 character.
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
      const lines = pending.split(/\r\n|\n|\r(?!$)/); // a final CR may be the first half of a CR LF
      pending = lines.pop();
      for (const line of lines) {
        if (line === "") {
          if (data.length) yield data.join("\n");
          data = [];
        } else if (line.startsWith("data:")) {
          data.push(line.slice(line[5] === " " ? 6 : 5));
        }
      }
      if (done) return; // an event without a final blank line is incomplete and is dropped
    }
  } finally {
    reader.cancel().catch(() => {}); // rejects if the body has failed, which read() has already reported
  }
}

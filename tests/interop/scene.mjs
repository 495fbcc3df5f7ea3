// The image that all clients send, a question about it, and the bundled model's response.
import { readFileSync } from "node:fs";

export const MODEL = "tiny-llava";
export const BASE64 = readFileSync(process.env.INTEROP_IMAGE).toString("base64");
export const DATA_URL = `data:image/png;base64,${BASE64}`;
export const QUESTION = "What colour is the circle?";
export const COLOR = "green";

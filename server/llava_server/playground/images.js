// Reads image files for a question. Only images that the server would reject are scaled down.

const SUPPORTED_TYPES = new Set(["image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp", "image/tiff"]);
const MAX_BYTES = 8_000_000; // base64 adds a third; the server accepts about 20 MB per image and 32 MB per request
const MAX_SIDE = 4096; // far above the few hundred pixels that models use

/**
 * @typedef {object} ImageFile
 * @property {string} name   file name, for display
 * @property {string} url    data: URL, for the request and for display
 * @property {boolean} isFile  whether the user has a file with this name that contains exactly the bytes sent
 */

/** @returns {Promise<ImageFile>} @throws {Error} with a message for the user if the browser cannot decode the file */
export async function readImage(file, { isFile = true } = {}) {
  const name = file.name || "image";
  const original = URL.createObjectURL(file);
  try {
    const { width, height } = await decoded(original);
    const fits = file.size <= MAX_BYTES && SUPPORTED_TYPES.has(file.type);
    const bytes = fits ? file : await reencoded(file, width, height);
    return { name, width, height, url: await dataUrl(bytes), isFile: fits && isFile };
  } catch {
    throw new Error(`“${name}” is not an image that this browser can read. Use JPEG, PNG, WebP, GIF or BMP.`);
  } finally {
    URL.revokeObjectURL(original);
  }
}

async function decoded(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  return { width: image.naturalWidth, height: image.naturalHeight };
}

async function reencoded(file, width, height) {
  const bitmap = await createImageBitmap(file); // the EXIF orientation is already applied
  const canvas = document.createElement("canvas");
  try {
    for (let scale = Math.min(1, MAX_SIDE / Math.max(width, height)); ; scale *= 0.7) {
      canvas.width = Math.max(1, Math.round(bitmap.width * scale));
      canvas.height = Math.max(1, Math.round(bitmap.height * scale));
      const context = canvas.getContext("2d");
      context.imageSmoothingQuality = "high";
      context.fillStyle = "white"; // JPEG has no transparency
      context.fillRect(0, 0, canvas.width, canvas.height);
      context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
      const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
      if (blob.size <= MAX_BYTES) return blob;
    }
  } finally {
    bitmap.close();
  }
}

function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

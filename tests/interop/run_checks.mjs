// Run the checks of one client: node run_checks.mjs CHECKS.MJS
//
// Each exported function is a check. For each check, a line of JSON with its name and its error (null if it
// passed) is written to standard output.
import { pathToFileURL } from "node:url";

for (const [check, run] of Object.entries(await import(pathToFileURL(process.argv[2])))) {
  let error = null;
  try {
    await run();
  } catch (reason) {
    error = reason.stack ?? String(reason);
  }
  process.stdout.write(`${JSON.stringify({ check, error })}\n`);
}

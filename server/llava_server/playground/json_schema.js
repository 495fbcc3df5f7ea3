// Checks a JSON value against a JSON schema and returns the violations.
//
// The server already enforces the schema. This check makes that visible, and finds the error in a truncated response.
// The keywords pattern and format are not checked.

const MAX_DEPTH = 64; // of nested schemas, because a schema can refer to itself
const MAX_CHECKS = 20_000; // alternatives that refer to the schema itself multiply
const MAX_ERRORS = 20;

export const MAX_NESTING = 100; // levels of a JSON value; JSON.stringify overflows the stack at a few thousand

const listOf = (value) => (Array.isArray(value) ? value : []);
const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

/** Returns whether a JSON value has more levels of lists and objects than this page processes. */
export function isNestedTooDeeply(value, levels = MAX_NESTING) {
  if (value === null || typeof value !== "object") return false;
  return levels === 0 || Object.values(value).some((item) => isNestedTooDeeply(item, levels - 1));
}

/** Returns a list of sentences, one for each violation. It is empty if the value conforms to the schema. */
export function violations(value, schema) {
  const errors = [];
  const budget = { left: MAX_CHECKS };
  check(value, schema, "$", { root: schema, errors, depth: 0, budget });
  if (budget.left <= 0) return ["The schema is too complex to be checked on this page."];
  return errors.slice(0, MAX_ERRORS);
}

function check(value, schema, path, context) {
  const { errors, budget } = context;
  budget.left -= 1;
  if (errors.length >= MAX_ERRORS || context.depth > MAX_DEPTH || budget.left <= 0) return;
  if (schema === false) errors.push(`${path} is not allowed.`);
  if (!isObject(schema)) return;
  const inner = { ...context, depth: context.depth + 1 };
  if (typeof schema.$ref === "string") check(value, resolve(schema.$ref, context.root), path, inner);
  checkType(value, schema, path, errors);
  checkCombinations(value, schema, path, inner);
  if (typeof value === "string")
    checkRange([...value].length, schema.minLength, schema.maxLength, `The length of ${path}`, errors);
  else if (typeof value === "number") checkNumber(value, schema, path, errors);
  else if (Array.isArray(value)) checkArray(value, schema, path, inner);
  else if (isObject(value)) checkObject(value, schema, path, inner);
}

function checkType(value, schema, path, errors) {
  const types = [schema.type ?? []].flat();
  const actual = typeOf(value);
  const matches = types.includes(actual) || (types.includes("number") && actual === "integer");
  if (types.length && !matches) errors.push(`${path} must be of type ${types.join(" or ")}, but is ${actual}.`);
  if ("const" in schema && !isEqual(value, schema.const))
    errors.push(`${path} must be ${JSON.stringify(schema.const)}.`);
  if (Array.isArray(schema.enum) && !schema.enum.some((option) => isEqual(value, option))) {
    errors.push(`${path} must be one of ${schema.enum.map((option) => JSON.stringify(option)).join(", ")}.`);
  }
}

function typeOf(value) {
  if (value === null) return "null";
  if (Array.isArray(value)) return "array";
  return Number.isInteger(value) ? "integer" : typeof value;
}

function checkCombinations(value, schema, path, context) {
  const count = (options) => options.filter((option) => conforms(value, option, path, context)).length;
  for (const option of listOf(schema.allOf)) check(value, option, path, context);
  if (Array.isArray(schema.anyOf) && !count(schema.anyOf))
    context.errors.push(`${path} conforms to none of the alternatives.`);
  if (Array.isArray(schema.oneOf) && count(schema.oneOf) !== 1)
    context.errors.push(`${path} must conform to exactly one alternative.`);
  if ("not" in schema && conforms(value, schema.not, path, context))
    context.errors.push(`${path} is excluded by the schema.`);
}

function conforms(value, schema, path, context) {
  const errors = [];
  check(value, schema, path, { ...context, errors });
  return errors.length === 0;
}

function checkRange(value, minimum, maximum, what, errors) {
  if (value < minimum) errors.push(`${what} must be at least ${minimum}, but is ${value}.`);
  if (value > maximum) errors.push(`${what} must be at most ${maximum}, but is ${value}.`);
}

function checkNumber(value, schema, path, errors) {
  checkRange(value, schema.minimum, schema.maximum, path, errors);
  if (value <= schema.exclusiveMinimum) errors.push(`${path} must be greater than ${schema.exclusiveMinimum}.`);
  if (value >= schema.exclusiveMaximum) errors.push(`${path} must be less than ${schema.exclusiveMaximum}.`);
  if (schema.multipleOf && !Number.isInteger(value / schema.multipleOf))
    errors.push(`${path} must be a multiple of ${schema.multipleOf}.`);
}

function checkArray(value, schema, path, context) {
  checkRange(value.length, schema.minItems, schema.maxItems, `The number of items of ${path}`, context.errors);
  const first = listOf(schema.prefixItems);
  value.forEach((item, index) => check(item, first[index] ?? schema.items ?? true, `${path}[${index}]`, context));
}

function checkObject(value, schema, path, context) {
  const properties = isObject(schema.properties) ? schema.properties : {};
  for (const name of listOf(schema.required)) {
    if (!Object.hasOwn(value, name)) context.errors.push(`${path}.${name} is missing.`);
  }
  for (const [name, item] of Object.entries(value)) {
    const own = Object.hasOwn(properties, name) ? properties[name] : (schema.additionalProperties ?? true);
    check(item, own, `${path}.${name}`, context);
  }
}

/** Returns the schema to which a local reference refers. An unknown reference allows all values. */
function resolve(reference, root) {
  if (!reference.startsWith("#")) return true;
  const names = reference.slice(1).split("/").slice(1);
  let found = root;
  for (const name of names) {
    const key = name.replaceAll("~1", "/").replaceAll("~0", "~");
    if (found === null || typeof found !== "object" || !Object.hasOwn(found, key)) return true;
    found = found[key];
  }
  return found;
}

function isEqual(left, right) {
  if (left === right) return true;
  if (typeof left !== "object" || typeof right !== "object" || left === null || right === null) return false;
  const names = Object.keys(left);
  const haveSameShape = Array.isArray(left) === Array.isArray(right) && names.length === Object.keys(right).length;
  return haveSameShape && names.every((name) => Object.hasOwn(right, name) && isEqual(left[name], right[name]));
}

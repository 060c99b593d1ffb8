"use strict";

const SHOWN = 200000; // characters of an answer; more would only freeze the page

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function refName(schema) {
  return schema.$ref ? schema.$ref.split("/").pop() : null;
}

function typeOf(schema) {
  if (!schema) return document.createTextNode("anything");
  const name = refName(schema);
  if (name) return make("a", { href: `#schema-${name}` }, name);
  const span = make("span");
  const choices = schema.anyOf || schema.oneOf;
  if (choices) {
    choices.forEach((choice, index) => span.append(index ? " or " : "", typeOf(choice)));
  } else if (schema.type === "array") {
    span.append("list of ", typeOf(schema.items));
  } else if (schema.type === "object" && schema.additionalProperties) {
    span.append("map of ", typeOf(schema.additionalProperties));
  } else if (schema.enum) {
    span.append(schema.enum.map((value) => JSON.stringify(value)).join(" or "));
  } else {
    span.append(schema.type ? `${schema.type}${schema.format ? ` (${schema.format})` : ""}` : "anything");
  }
  return span;
}

function limitsOf(schema) {
  const words = {
    minimum: "at least", maximum: "at most", minLength: "length at least", maxLength: "length at most",
    minItems: "entries at least", maxItems: "entries at most", minProperties: "entries at least",
    maxProperties: "entries at most", pattern: "matches",
  };
  const parts = Object.keys(words).filter((name) => name in schema).map((name) => `${words[name]} ${schema[name]}`);
  if ("default" in schema) parts.push(`default ${JSON.stringify(schema.default)}`);
  return parts.join(", ");
}

function table(rows) {
  const body = make("tbody");
  for (const [name, type, note] of rows) {
    body.append(make("tr", {}, make("td", {}, make("code", {}, name)), make("td", {}, type), make("td", {}, note)));
  }
  return make("table", {}, body);
}

function schemaTable(schema) {
  const required = new Set(schema.required || []);
  const rows = Object.entries(schema.properties || {}).map(([name, property]) => {
    const notes = [required.has(name) ? "required" : "", property.description || "", limitsOf(property)];
    return [name, typeOf(property), notes.filter(Boolean).join("; ")];
  });
  return table(rows);
}

function field(parameter, inputs) {
  const input = make("input", { "aria-label": parameter.name });
  inputs.push([parameter, input]);
  return input;
}

async function request(path, inputs, output) {
  const query = new URLSearchParams();
  const headers = {};
  for (const [parameter, input] of inputs) {
    const value = input.value;
    if (parameter.in === "path") {
      path = path.replace(`{${parameter.name}}`, encodeURIComponent(value));
    } else if (value !== "" && parameter.in === "query") {
      query.set(parameter.name, value);
    } else if (value !== "") {
      headers[parameter.name] = value;
    }
  }
  const key = document.getElementById("key").value.trim();
  if (key) headers.Authorization = `Bearer ${key}`;
  output.hidden = false;
  output.textContent = "…";
  try {
    const base = new URL("./", document.baseURI).pathname.replace(/\/$/, "");
    const answer = await fetch(base + path + (query.size ? `?${query}` : ""), { headers, credentials: "omit" });
    let text = (await answer.text()).slice(0, SHOWN);
    try { text = JSON.stringify(JSON.parse(text), null, 2); } catch { /* not JSON: shown as it is */ }
    output.textContent = `HTTP ${answer.status}\n${text}`;
  } catch (error) {
    output.textContent = String(error);
  }
}

function bodyOf(content) {
  const rows = Object.entries(content).map(([kind, { schema }]) => [kind, typeOf(schema), schema.description || ""]);
  return table(rows);
}

function operation(path, method, details) {
  const inside = make("div");
  if (details.description) inside.append(make("p", {}, details.description));
  const inputs = [];
  if (details.parameters.length) {
    const rows = details.parameters.map((parameter) => [
      parameter.name,
      method === "get" ? field(parameter, inputs) : typeOf(parameter.schema),
      [parameter.in, parameter.description, limitsOf(parameter.schema)].filter(Boolean).join("; "),
    ]);
    inside.append(make("h3", {}, "Parameters"), table(rows));
  }
  if (details.requestBody) inside.append(make("h3", {}, "Body"), bodyOf(details.requestBody.content));
  const answers = Object.entries(details.responses).map(([status, answer]) => {
    const kinds = make("span");
    for (const [kind, { schema }] of Object.entries(answer.content || {})) {
      kinds.append(make("div", {}, typeOf(schema), ` (${kind})`));
    }
    return [status, kinds, answer.description];
  });
  inside.append(make("h3", {}, "Answers"), table(answers));
  if (method === "get" && !details["x-client-messages"]) {
    const output = make("pre", { "aria-live": "polite" });
    output.hidden = true;
    const button = make("button", { type: "button" }, "Try it");
    button.addEventListener("click", () => request(path, inputs, output));
    inside.append(button, output);
  }
  const title = make(
    "summary", {}, make("span", { class: "method" }, method.toUpperCase()), make("code", {}, path), ` ${details.summary}`,
  );
  const block = make("details", { id: details.operationId }, title, inside);
  block.dataset.search = `${method} ${path} ${details.summary} ${details.tags.join(" ")}`.toLowerCase();
  return block;
}

function openTarget() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target instanceof HTMLDetailsElement) {
    target.open = true;
    target.scrollIntoView();
  }
}

function filter(text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  for (const block of document.querySelectorAll("details[data-search]")) {
    block.hidden = !words.every((word) => block.dataset.search.includes(word));
  }
}

function render(api) {
  document.getElementById("version").textContent = api.info.version;
  document.getElementById("about").textContent = api.info.description;
  const main = document.getElementById("operations");
  const contents = document.getElementById("contents");
  main.replaceChildren();
  for (const { name } of api.tags) {
    const anchor = `tag-${name.replaceAll(" ", "-")}`;
    main.append(make("h2", { id: anchor }, name));
    contents.append(make("a", { href: `#${anchor}` }, name));
    for (const [path, methods] of Object.entries(api.paths)) {
      for (const [method, details] of Object.entries(methods)) {
        if (details.tags.includes(name)) main.append(operation(path, method, details));
      }
    }
  }
  main.append(make("h2", { id: "schemas" }, "Schemas"));
  contents.append(make("a", { href: "#schemas" }, "Schemas"));
  for (const [name, schema] of Object.entries(api.components.schemas)) {
    const inside = make("div", {}, make("p", {}, schema.description || ""), schemaTable(schema));
    const block = make("details", { id: `schema-${name}` }, make("summary", {}, make("code", {}, name)), inside);
    block.dataset.search = name.toLowerCase();
    main.append(block);
  }
  openTarget();
}

async function start() {
  document.getElementById("credentials").addEventListener("submit", (event) => event.preventDefault());
  document.getElementById("filter").addEventListener("input", (event) => filter(event.target.value));
  window.addEventListener("hashchange", openTarget);
  try {
    const answer = await fetch("openapi.json", { credentials: "omit" });
    render(await answer.json());
  } catch (error) {
    document.getElementById("operations").textContent = `The description could not be read: ${error}`;
  }
}

start();
